package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/moby/buildkit/util/gitutil"

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
	named   map[string]bool       // references by tag of named contexts
	allowed func(ref string) bool // what else may be used; nil means anything
	fetch   func(ctx context.Context, host string) error
	redact  redactor

	mu     sync.Mutex
	bases  map[run.Base]bool
	tagged map[string]bool // references that the Dockerfile gives without a digest
	more   bool            // there were other sources than images and what the session sends
}

func newBaseRecorder(b solve.Build, cfg solve.SessionConfig) *baseRecorder {
	r := &baseRecorder{own: map[string]bool{}, pinned: b.Pins, named: map[string]bool{}, allowed: cfg.Images, fetch: cfg.Fetch,
		bases: map[run.Base]bool{}, tagged: map[string]bool{}}
	for _, ref := range b.Images {
		r.own[ref] = true
	}
	for _, c := range b.Contexts {
		if named, err := reference.ParseDockerRef(c.Image); err == nil {
			r.named[named.String()] = true
		}
	}
	return r
}

func (r *baseRecorder) check(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
	source := req.GetSource().GetSource()
	image, ok := strings.CutPrefix(source.GetIdentifier(), imageScheme)
	if !r.mayUse(source.GetIdentifier()) {
		return denied(refusal(cmp.Or(image, source.GetIdentifier()))), nil, nil
	}
	if err := r.mayFetch(ctx, source); err != nil {
		return denied(err.Error()), nil, nil
	}
	if ok && r.named[image] && !strings.Contains(image, "@") {
		return r.digest(req)
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

// digest has the image of a named context used by its digest, which the daemon would else not tell. It
// comes back here with it.
func (r *baseRecorder) digest(req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
	source := req.GetSource().GetSource()
	found := req.GetSource().GetImage().GetDigest()
	if found == "" {
		return nil, &gatewaypb.ResolveSourceMetaRequest{Source: source, Platform: req.GetPlatform()}, nil
	}
	image := strings.TrimPrefix(source.GetIdentifier(), imageScheme)
	r.add(image)
	return &policysession.DecisionResponse{Action: spb.PolicyAction_CONVERT,
		Update: &pb.SourceOp{Identifier: source.GetIdentifier() + "@" + found, Attrs: source.GetAttrs()}}, nil, nil
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

// mayFetch reports why a source that has a URL must not be fetched.
func (r *baseRecorder) mayFetch(ctx context.Context, source *pb.SourceOp) error {
	at := source.GetIdentifier()
	scheme, _, _ := strings.Cut(at, "://")
	if r.fetch == nil || scheme != "http" && scheme != "https" && scheme != "git" {
		return nil
	}
	if scheme == "git" {
		at = cmp.Or(source.GetAttrs()[pb.AttrFullRemoteURL], at) // what follows git:// is a name only
	}
	host, err := hostOf(at)
	if err == nil {
		err = r.fetch(ctx, host)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.redact.String(at), err)
	}
	return nil
}

// hostOf returns the host that a URL leads to, which may be written as git's user@host:path.
func hostOf(at string) (string, error) {
	if u, err := url.Parse(at); err == nil && u.Scheme != "" && u.Scheme != "git" && u.Hostname() != "" {
		return u.Hostname(), nil
	}
	u, err := gitutil.ParseURL(at)
	if err != nil || u.Host == "" {
		return "", errors.New("its host cannot be told")
	}
	if u.Scheme == gitutil.GitProtocol {
		return "", errors.New("git:// is not encrypted and tells nobody apart; write https://")
	}
	if host, _, err := net.SplitHostPort(u.Host); err == nil {
		return host, nil
	}
	return u.Host, nil
}

// denied is the decision about what must not be used.
func denied(why string) *policysession.DecisionResponse {
	return &policysession.DecisionResponse{Action: spb.PolicyAction_DENY,
		DenyMessages: []*policysession.DenyMessage{{Message: why}}}
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
