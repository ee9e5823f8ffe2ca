package buildkit

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"kiln/internal/run"
)

const imageScheme = "docker-image://"

// A baseRecorder sees every source of a build before it is used, and notes the images. The daemon
// asks twice for each: as the Dockerfile names it, and with the digest that it resolved to, whether
// or not the steps that use it are cached.
type baseRecorder struct {
	own map[string]bool // references of the run's own images

	mu    sync.Mutex
	bases map[run.Base]bool
}

func newBaseRecorder(images map[string]string) *baseRecorder {
	r := &baseRecorder{own: map[string]bool{}, bases: map[run.Base]bool{}}
	for _, ref := range images {
		r.own[ref] = true
	}
	return r
}

func (r *baseRecorder) check(_ context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
	if image, ok := strings.CutPrefix(req.GetSource().GetSource().GetIdentifier(), imageScheme); ok && !r.own[image] {
		r.add(image)
	}
	return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
}

func (r *baseRecorder) add(image string) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return // the daemon will say so better
	}
	digested, ok := named.(reference.Digested)
	if !ok {
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

// list returns the images seen so far, sorted.
func (r *baseRecorder) list() []run.Base {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]run.Base, 0, len(r.bases))
	for b := range r.bases {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b run.Base) int {
		return cmp.Or(cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}
