package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
)

// A wire is one conversation with git-upload-pack: the list of refs, then at most one pack over ssh,
// any number over http.
type wire interface {
	advertise(ctx context.Context) (io.ReadCloser, error)
	request(ctx context.Context, body []byte) (io.ReadCloser, error)
	close()
}

// A session is a conversation whose list of refs has been read.
type session struct {
	m    *Mirrors
	wire wire
	refs refs
	// resumed says that the server was not asked for its refs: there are none in refs.
	resumed bool
	// base is a commit that what is fetched is said to follow, zero if none is.
	base plumbing.Hash
}

// connect opens a session. The caller closes it.
func (m *Mirrors) connect(ctx context.Context, r remote, cred Credential) (*session, error) {
	var w wire
	var err error
	if r.scheme == "ssh" {
		w, err = m.dialSSH(ctx, r, cred)
	} else {
		w, err = m.newHTTP(r, cred)
	}
	if err != nil {
		return nil, err
	}
	s := &session{m: m, wire: w}
	if err := s.advertise(ctx); err != nil {
		w.close()
		return nil, err
	}
	m.access.prove(r, cred, s.greeting())
	return s, nil
}

func (s *session) close() { s.wire.close() }

func (s *session) advertise(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := s.wire.advertise(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer body.Close()
	adv := packp.NewAdvRefs()
	in := newBoundedReader(body, s.m.lim.Refs, "list of refs", s.m.lim.Idle, cancel)
	defer in.stop()
	err = adv.Decode(in)
	switch {
	case in.err != nil:
		return causeOf(ctx, in.err)
	case errors.Is(err, packp.ErrEmptyAdvRefs):
		err = nil
	case errors.Is(err, packp.ErrEmptyInput):
		return s.silence()
	}
	if err != nil {
		return causeOf(ctx, fmt.Errorf("no list of refs from the server; is it a git repository? (%w)", err))
	}
	s.drain(in)
	s.refs = newRefs(adv)
	return nil
}

// silence explains an answer without content.
func (s *session) silence() error {
	if w, ok := s.wire.(*sshWire); ok {
		return w.complaint()
	}
	return fmt.Errorf("%w: the server sent nothing", ErrUnavailable)
}

// A request says what to fetch.
type request struct {
	wants []plumbing.Hash
	haves []plumbing.Hash // commits that are here with all their files
	full  bool            // with the whole history, as far as it is not that of the haves
	few   bool            // no more than maxFollowing objects
}

// pack asks for a pack. The caller closes the reader, which yields the pack's bytes.
func (s *session) pack(ctx context.Context, req request, cancel context.CancelCauseFunc) (io.ReadCloser, error) {
	up := s.uploadRequest(req)
	var body writer
	if err := up.UploadRequest.Encode(&body); err != nil {
		return nil, err
	}
	if err := up.UploadHaves.Encode(&body, false); err != nil {
		return nil, err
	}
	body = append(body, "0009done\n"...)
	rc, err := s.wire.request(ctx, body)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	in := newBoundedReader(rc, s.m.lim.Pack, "transfer", s.m.lim.Idle, cancel)
	closer := func() error {
		in.stop()
		return rc.Close()
	}
	br := bufio.NewReaderSize(in, 64<<10)
	if err := skipNegotiation(br); err != nil {
		_ = closer()
		if in.err != nil {
			err = in.err
		}
		return nil, causeOf(ctx, err)
	}
	return &packReader{r: demux(up.Capabilities, br), end: func() { s.drain(br) }, in: in, close: closer}, nil
}

// drain reads what an answer over HTTP still has after its last word: its connection can then be used again.
func (s *session) drain(r io.Reader) {
	if _, ok := s.wire.(*httpWire); ok {
		_, _ = io.CopyN(io.Discard, r, 512)
	}
}

// A refusal is what the server said instead of sending a pack.
type refusal struct{ text string }

func (r *refusal) Error() string { return fmt.Sprintf("the server says %q", clip(r.text, 200)) }

// skipNegotiation reads up to the pack: the boundary of a shallow fetch and the acknowledgements, in
// whatever dialect.
func skipNegotiation(br *bufio.Reader) error {
	for {
		head, err := br.Peek(5)
		if len(head) >= 4 && string(head[:4]) == "0000" {
			_, _ = br.Discard(4)
			continue
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		n, nerr := strconv.ParseUint(string(head[:4]), 16, 16)
		if nerr != nil || !strings.ContainsRune("suANE", rune(head[4])) {
			return nil // the pack
		}
		line, err := br.Peek(int(n))
		if err != nil || n < 5 {
			return fmt.Errorf("answer breaks off: %w", io.ErrUnexpectedEOF)
		}
		if text, ok := strings.CutPrefix(string(line[4:]), "ERR "); ok {
			return &refusal{strings.TrimSpace(text)}
		}
		_, _ = br.Discard(int(n))
	}
}

func demux(caps *capability.List, r io.Reader) io.Reader {
	switch {
	case caps.Supports(capability.Sideband64k):
		return sideband.NewDemuxer(sideband.Sideband64k, r)
	case caps.Supports(capability.Sideband):
		return sideband.NewDemuxer(sideband.Sideband, r)
	}
	return r
}

func (s *session) uploadRequest(req request) *packp.UploadPackRequest {
	up := packp.NewUploadPackRequestFromCapabilities(s.refs.caps)
	up.Wants, up.Haves = req.wants, req.haves
	if s.refs.caps.Supports(capability.NoProgress) {
		_ = up.Capabilities.Set(capability.NoProgress)
	}
	if !req.full {
		_ = up.Capabilities.Set(capability.Shallow)
		up.Depth, up.Shallows = packp.DepthCommits(1), req.haves
	}
	return up
}

// writer is an io.Writer that go-git's encoders can write to.
type writer []byte

func (w *writer) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}

// packReader prefers why its source ended to what the layers above made of that.
type packReader struct {
	r     io.Reader
	end   func() // called at its end
	in    *boundedReader
	close func() error
}

func (p *packReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	switch {
	case err == io.EOF:
		p.end()
	case err != nil && p.in.err != nil:
		err = p.in.err
	}
	return n, err
}

func (p *packReader) Close() error { return p.close() }

// A boundedReader ends with an error after limit bytes, and ends its context when the source is idle.
type boundedReader struct {
	r    io.Reader
	left int64
	what string
	idle time.Duration
	err  error

	timer *time.Timer
}

func newBoundedReader(r io.Reader, limit int64, what string, idle time.Duration, cancel context.CancelCauseFunc) *boundedReader {
	return &boundedReader{r: r, left: limit, what: what, idle: idle, timer: time.AfterFunc(idle, func() {
		cancel(fmt.Errorf("%w: nothing received for %s", ErrUnavailable, idle))
	})}
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.timer.Reset(b.idle)
	n, err := b.r.Read(p)
	b.timer.Stop() // what we do with it is not the server's time
	if b.left -= int64(n); b.left < 0 {
		err = fmt.Errorf("%s: %w", b.what, ErrTooLarge)
		n = 0
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *boundedReader) stop() { b.timer.Stop() }

// causeOf returns why ctx ended in place of err, which then only says that it did.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
