package worker

import (
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/run"
)

// Readable returns the repositories of the co-located registry, which has several names, that a restricted
// run may read: those of the base images that it is pinned to, of its context, and, as a pattern that ends
// in "*", those that builds are staged in.
func Readable(spec run.Spec, registry ...string) []string {
	readable := map[string]bool{StagingRoot + "*": true}
	names := slices.Collect(maps.Keys(spec.Pins))
	if ref, ok := strings.CutPrefix(spec.Context, "oci://"); ok {
		names = append(names, ref)
	}
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err == nil && slices.Contains(registry, reference.Domain(named)) {
			readable[reference.Path(named)] = true
		}
	}
	return slices.Sorted(maps.Keys(readable))
}

// mayUse reports whether steps of the run may use an image: any of another registry, and of the co-located one
// what the run itself has built and what its author may read, which a restricted run must be pinned to besides.
// What else is staged there is other runs'.
func (a *attempt) mayUse(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	if !a.images.ours(reference.Domain(named)) || a.images.staged(ref) {
		return true
	}
	switch permitted := a.run.Spec.Limits.MayPull(reference.Path(named)) == nil; {
	case !permitted:
		return false
	case !a.run.Spec.Restricted:
		return true
	}
	spec := run.Spec{Pins: a.run.Spec.Pins}
	return slices.Contains(Readable(spec, append([]string{a.images.registry}, a.images.aliases...)...), reference.Path(named))
}

// confined reports whether there are images of the co-located registry that the run may not use.
func (a *attempt) confined() bool { return a.run.Spec.Restricted || !a.run.Spec.Limits.ReadsAll() }

// confinedAs is who may not use all images.
func (a *attempt) confinedAs() string {
	if a.run.Spec.Restricted {
		return "a pull request from outside of the repository"
	}
	return a.run.Spec.Limits.By + ", who is the author"
}
