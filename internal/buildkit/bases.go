package buildkit

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"kiln/internal/run"
	"kiln/internal/solve"
)

const (
	imageScheme = "docker-image://"
	localScheme = "local://"
)

// A baseRecorder sees every source of a build before it is used, and notes the images. The daemon
// asks twice for each: as the Dockerfile names it, and with the digest that it resolved to, whether
// or not the steps that use it are cached.
type baseRecorder struct {
	own     map[string]bool // references of the run's own images
	pinned  map[string]string
	allowed func(ref string) bool // what else may be used; nil means anything

	mu     sync.Mutex
	bases  map[run.Base]bool
	tagged map[string]bool // references that the Dockerfile gives without a digest
	more   bool            // there were other sources than images and what the session sends
}

func newBaseRecorder(images, pins map[string]string, allowed func(ref string) bool) *baseRecorder {
	r := &baseRecorder{own: map[string]bool{}, pinned: pins, allowed: allowed, bases: map[run.Base]bool{}, tagged: map[string]bool{}}
	for _, ref := range images {
		r.own[ref] = true
	}
	return r
}

func (r *baseRecorder) check(_ context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
	source := req.GetSource().GetSource()
	image, ok := strings.CutPrefix(source.GetIdentifier(), imageScheme)
	if !r.mayUse(source.GetIdentifier()) {
		return denied(cmp.Or(image, source.GetIdentifier())), nil, nil
	}
	switch {
	case ok && !r.own[image]:
		r.add(image)
		// A frontend is a program that may read what it likes.
		ok = source.GetAttrs()[pb.AttrImageRecordType] != string(client.UsageRecordTypeFrontend)
	case !ok:
		ok = strings.HasPrefix(source.GetIdentifier(), localScheme)
	}
	if !ok {
		r.mu.Lock()
		r.more = true
		r.mu.Unlock()
	}
	return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
}

// openSchemes are those of sources that hold nothing of a registry's.
var openSchemes = []string{localScheme, "git://", "http://", "https://"}

// mayUse decides about a source where not any image may be used. The daemon may read more of a registry
// than the session, so what the registry would say to the session is not relied on.
func (r *baseRecorder) mayUse(identifier string) bool {
	image, ok := strings.CutPrefix(identifier, imageScheme)
	switch {
	case r.allowed == nil:
		return true
	case ok:
		return r.own[image] || r.allowed(image)
	}
	return slices.ContainsFunc(openSchemes, func(scheme string) bool { return strings.HasPrefix(identifier, scheme) })
}

// denied is the decision about an image that must not be used.
func denied(image string) *policysession.DecisionResponse {
	return &policysession.DecisionResponse{Action: spb.PolicyAction_DENY,
		DenyMessages: []*policysession.DenyMessage{{Message: refusal(image)}}}
}

// refusal says that a session must not use an image.
func refusal(image string) string {
	return "image " + image + ": this run may not use it: it is of a pull request from outside of the repository, " +
		"and reads of this server's registry only the base images that the task is known to be built on"
}

func (r *baseRecorder) add(image string) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return // the daemon will say so better
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		name := reference.TagNameOnly(named).String()
		if r.pinned[name] != "" {
			return // what its tag names does not matter
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tagged[name] = true
		return
	}
	base := run.Base{Ref: named.Name(), Digest: digested.Digest().String()}
	if tagged, ok := named.(reference.Tagged); ok {
		base.Ref += ":" + tagged.Tag()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bases[base] = true
}

// fill tells what the build was made from: the images seen so far, sorted, and whether that is all.
func (r *baseRecorder) fill(b *solve.Built) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.Bases = slices.SortedFunc(maps.Keys(r.bases), func(a, b run.Base) int {
		return cmp.Or(cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Digest, b.Digest))
	})
	b.Tagged, b.Closed = slices.Sorted(maps.Keys(r.tagged)), !r.more
}
