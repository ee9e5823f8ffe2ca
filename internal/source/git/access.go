package git

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
)

const (
	proofTTL  = time.Minute
	maxProofs = 4096
)

// access remembers for a short time who has shown which server a credential that it accepted, and what
// the server then said about itself.
type access struct {
	salt [32]byte

	mu     sync.Mutex
	proofs map[[sha256.Size]byte]proof
}

type proof struct {
	at       time.Time
	greeting *greeting // nil if the next conversation has to begin from the start
}

// A greeting is what is needed to go on with a conversation over HTTP, where each request stands for
// itself.
type greeting struct {
	caps *capability.List // not changed any more
	base url.URL          // where the repository is, after redirects
	auth bool             // whether the credential is shown there
}

func (a *access) key(r remote, cred Credential) (k [sha256.Size]byte) {
	h := hmac.New(sha256.New, a.salt[:])
	for _, part := range []string{r.String(), cred.Username, cred.Password, string(cred.PrivateKey)} {
		sum := sha256.Sum256([]byte(part))
		h.Write(sum[:])
	}
	copy(k[:], h.Sum(nil))
	return k
}

func (a *access) prove(r remote, cred Credential, g *greeting) {
	k := a.key(r, cred)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.proofs == nil || len(a.proofs) >= maxProofs {
		a.proofs = map[[sha256.Size]byte]proof{}
	}
	a.proofs[k] = proof{at: time.Now(), greeting: g}
}

func (a *access) proven(r remote, cred Credential) bool {
	_, ok := a.recall(r, cred)
	return ok
}

func (a *access) recall(r remote, cred Credential) (*greeting, bool) {
	k := a.key(r, cred)
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.proofs[k]
	return p.greeting, ok && time.Since(p.at) < proofTTL
}

// revoke forgets what the server accepted: it has to be asked anew.
func (a *access) revoke(r remote, cred Credential) {
	k := a.key(r, cred)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.proofs, k)
}

// greeting returns what another session with the same server and credential can begin with; nil if it
// has to begin from the start.
func (s *session) greeting() *greeting {
	w, ok := s.wire.(*httpWire)
	if !ok || !s.refs.caps.Supports(capability.Shallow) {
		return nil
	}
	return &greeting{caps: s.refs.caps, base: *w.base, auth: w.auth}
}

// resume opens a session without asking the server for its refs, which it was asked for a moment ago with
// the same credential: to fetch a commit by its name they are not needed. The server checks the credential
// and the name again. Without what it said then, this is connect.
func (m *Mirrors) resume(ctx context.Context, r remote, cred Credential) (*session, error) {
	g, ok := m.access.recall(r, cred)
	if !ok || g == nil {
		return m.connect(ctx, r, cred)
	}
	base := g.base
	return &session{m: m, wire: &httpWire{m: m, base: &base, cred: cred, auth: g.auth}, refs: refs{caps: g.caps}, resumed: true}, nil
}

// openKnown makes a commit present and pins it, for one whose credential the server has just accepted. Who
// comes while another fetches the commit waits for that. It asks for no refs if it can do without.
func (m *Mirrors) openKnown(ctx context.Context, sn *snapshot) (*generation, error) {
	r, cred := sn.remote, sn.cred
	var s *session
	g, err := m.ensure(ctx, sn.mirror, sn.head, nil, func(ctx context.Context) (_ *session, err error) {
		if s, err = m.resume(ctx, r, cred); err == nil {
			s.base = sn.base
		}
		return s, err
	})
	if s != nil {
		s.close()
	}
	if err != nil && s != nil && s.resumed && ctx.Err() == nil {
		m.access.revoke(r, cred)
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrTooLarge) {
			return nil, errAskAnew
		}
	}
	return g, err
}

// errAskAnew says that a commit could not be had without asking the server for its refs.
var errAskAnew = errors.New("the server has to be asked for its refs")

// Prefetch makes a commit present that is about to be opened with the same credential. It does nothing
// unless the server has accepted that credential a moment ago, and the commit is given in full. Who opens
// the commit meanwhile waits for it; if it cannot be had, whoever opens it is told why.
func (m *Mirrors) Prefetch(ctx context.Context, ref Ref, cred Credential) error {
	r, cred, err := m.target(ref.URL, cred)
	if err != nil || !isCommit(ref.Commit) || !m.access.proven(r, cred) {
		return err
	}
	life, end := context.WithCancel(ctx)
	defer end()
	_, err = m.open(life, r, ref, cred)
	return r.fail(ctx, cred, ref.Commit, err)
}
