package taskspec

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// acrImage is the image of ACR's command line, which the alias acr names. It speaks to an API that only ACR has, so
// its command purge is understood here. An alias of the operator's brings another image instead.
const acrImage = "mcr.microsoft.com/acr/acr-cli"

// DefaultPurgeAge is how old tags must be that a purge deletes, unless it says so itself.
const DefaultPurgeAge = 24 * time.Hour

// A Purge is an acr purge command: it deletes old tags and, if asked, manifests that nothing names. A worker has
// the registry execute it.
type Purge struct {
	// Registry is what --registry names, empty for the server's own.
	Registry         string
	Filters          []string // REPOSITORY:TAG, both regular expressions
	Ago              time.Duration
	Keep             int
	Untagged, DryRun bool
}

var purgeFlags = newFlagSet("acr purge", "registry/r username/u password/p config/c filter/f ago keep concurrency filter-timeout-seconds repository-page-size",
	"untagged dry-run include-locked")

// finishPurge makes of a cmd step that is acr purge what the command does.
func (p *parser) finishPurge(s *rawStep) {
	if !p.opt.DockerCommands || s.Kind != KindCmd || s.Cmd == nil || s.Cmd.EntryPoint != nil || len(s.Cmd.Args) == 0 || s.Cmd.Args[0] != "purge" ||
		!isACR(s.Cmd.Image) {
		return
	}
	at := s.at(s.cmd.node)
	flags, rest, err := purgeFlags.parse(s.Cmd.Args[1:], true)
	switch {
	case err != nil:
		p.refuse(at, "cmd", "%v", err)
		return
	case len(rest) > 0:
		p.refuse(at, "cmd", "acr purge takes no arguments, this has %s", p.quoteWords(rest))
		return
	}
	purge := &Purge{Ago: DefaultPurgeAge}
	for _, f := range flags {
		p.purgeFlag(at, purge, f)
	}
	if len(purge.Filters) == 0 {
		p.refuse(at, "cmd", "acr purge needs --filter REPOSITORY:TAG")
	}
	s.Cmd.Purge = purge
}

// isACR reports whether an image is ACR's command line, of any version.
func isACR(image string) bool {
	rest, ok := strings.CutPrefix(image, acrImage)
	return ok && (rest == "" || rest[0] == ':' || rest[0] == '@')
}

func (p *parser) purgeFlag(at place, purge *Purge, f option) {
	var err error
	switch f.name {
	case "registry":
		purge.Registry = f.value
	case "filter":
		purge.Filters = append(purge.Filters, f.value)
	case "ago":
		purge.Ago, err = ParseAge(f.value)
	case "keep":
		if purge.Keep, err = strconv.Atoi(f.value); err != nil || purge.Keep < 0 {
			err = errors.New("want a number of tags")
		}
	case "untagged":
		purge.Untagged = f.value == "true"
	case "dry-run":
		purge.DryRun = f.value == "true"
	case "username", "password", "config":
		p.warnf(at, "cmd", "acr purge --%s has no effect here: what the step may do is the operator's to say", f.name)
	case "include-locked":
		if f.value == "true" {
			p.warnf(at, "cmd", "acr purge --include-locked has no effect here: what is locked stays; kiln lock takes locks off")
		}
	}
	if err != nil {
		p.refuse(at, "cmd", "acr purge --%s: %v, not %q", f.name, err, p.clip(f.value))
	}
}

// maxAge is the longest age.
const maxAge = 100 * 365 * 24 * time.Hour

// ParseAge reads a duration that may begin with days: 30d, 1d3h6m.
func ParseAge(s string) (time.Duration, error) {
	wrong := errors.New("want days or a duration, such as 30d or 1d3h6m")
	var d time.Duration
	rest := s
	if days, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 15)
		if err != nil {
			return 0, wrong
		}
		d, rest = time.Duration(n)*24*time.Hour, after
	}
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 || more > maxAge-d {
			return 0, wrong
		}
		d += more
	}
	if s == "" || d > maxAge {
		return 0, wrong
	}
	return d, nil
}
