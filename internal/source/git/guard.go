package git

import (
	"errors"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

const (
	trailer       = 20      // bytes of a pack's checksum
	maxObjects    = 8 << 20 // of one pack
	maxTotalRatio = 64      // how many times Limits.Pack a pack may unpack to
)

// A guard reads a pack before its parser does, and ends it with an error when an object, which the
// parser would unpack into memory, or all of them are too large. The parser gets the pack's last bytes,
// without which it unpacks nothing, only after the guard has seen all.
type guard struct {
	src  io.Reader
	pw   *io.PipeWriter
	done chan struct{}
	err  error // why the guard stopped
	eof  bool
	held []byte

	limit, total int64
	objects      uint32 // at most
	count        uint32
	sizes        map[int64]int64 // size of the object at an offset
}

func newGuard(src io.Reader, lim Limits) *guard {
	pr, pw := io.Pipe()
	g := &guard{src: src, pw: pw, done: make(chan struct{}), limit: lim.Object, total: lim.Pack * maxTotalRatio, objects: maxObjects,
		sizes: map[int64]int64{}}
	go func() {
		defer close(g.done)
		g.err = g.scan(pr)
		if g.err == nil {
			_, g.err = io.Copy(io.Discard, pr)
		}
		pr.CloseWithError(errors.Join(g.err, io.ErrClosedPipe))
	}()
	return g
}

// Read passes the pack on. It keeps back the trailer until the guard is content.
func (g *guard) Read(b []byte) (int, error) {
	for !g.eof && len(g.held) <= trailer {
		buf := make([]byte, 32<<10)
		n, err := g.src.Read(buf)
		if n > 0 {
			if _, werr := g.pw.Write(buf[:n]); werr != nil {
				return 0, g.stop()
			}
		}
		g.held = append(g.held, buf[:n]...)
		switch {
		case err == io.EOF:
			g.eof = true
			if err := g.stop(); err != nil {
				return 0, err
			}
		case err != nil:
			g.pw.CloseWithError(err)
			return 0, err
		}
	}
	pass := len(g.held)
	if !g.eof {
		pass -= trailer
	}
	if pass == 0 {
		return 0, io.EOF
	}
	n := copy(b, g.held[:pass])
	g.held = g.held[n:]
	return n, nil
}

// stop waits for the guard and returns what it found.
func (g *guard) stop() error {
	g.pw.Close()
	<-g.done
	return g.err
}

func (g *guard) scan(r io.Reader) error {
	s := packfile.NewScanner(r)
	_, count, err := s.Header()
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if count > g.objects {
		return fmt.Errorf("pack of %d objects, at most %d are allowed: %w", count, g.objects, ErrTooLarge)
	}
	g.count = count
	for range count {
		h, err := s.NextObjectHeader()
		if err != nil {
			return fmt.Errorf("pack: %w", err)
		}
		if err := g.admit(h.Length); err != nil {
			return err
		}
		begin := &prefix{}
		if _, _, err := s.NextObject(begin); err != nil {
			return fmt.Errorf("pack: %w", err)
		}
		size := h.Length
		if h.Type == plumbing.OFSDeltaObject || h.Type == plumbing.REFDeltaObject {
			if size, err = begin.targetSize(); err != nil {
				return err
			}
			if err := g.admit(size); err != nil {
				return err
			}
		}
		if len(g.sizes) < maxSizes {
			g.sizes[h.Offset] = size
		}
	}
	return nil
}

func (g *guard) admit(size int64) error {
	if size < 0 || size > g.limit {
		return fmt.Errorf("the commit has a file of %d bytes, at most %d are allowed: %w", size, g.limit, ErrTooLarge)
	}
	if g.total -= size; g.total < 0 {
		return fmt.Errorf("the commit's files together: %w", ErrTooLarge)
	}
	return nil
}

// prefix keeps the first bytes of an object.
type prefix struct {
	b [20]byte
	n int
}

func (p *prefix) Write(b []byte) (int, error) {
	p.n += copy(p.b[p.n:], b)
	return len(b), nil
}

// targetSize reads the header of a delta: the size of its base, then of what it makes of it.
func (p *prefix) targetSize() (int64, error) {
	b, size := p.b[:p.n], int64(0)
	for range 2 {
		size = 0
		for shift := 0; ; shift += 7 {
			if len(b) == 0 || shift > 56 {
				return 0, errors.New("pack: malformed delta")
			}
			c := b[0]
			b = b[1:]
			size |= int64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
	}
	return size, nil
}
