package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"kiln/internal/bus"
)

// A Summary says what is in a backup.
type Summary struct {
	Header
	KeyFiles []string
	Streams  []StreamSummary
}

// A StreamSummary says what is in a stream of a backup.
type StreamSummary struct {
	Name     string
	Messages uint64
}

// Verify reads a backup to its end. It returns an error that wraps ErrDamaged or ErrNewer for one that cannot be used.
func Verify(from io.Reader) (Summary, error) {
	var s Summary
	err := read(from, visitor{
		begin: func(h Header) error { s.Header = h; return nil },
		key: func(k key) error {
			s.KeyFiles = append(s.KeyFiles, k.Name)
			return nil
		},
		stream: func(sn bus.Snapshot, _ bool, more func() ([]byte, error)) error {
			d, err := summary(sn)
			if err != nil {
				return err
			}
			s.Streams = append(s.Streams, d)
			return drain(more)
		},
	})
	return s, err
}

func drain(more func() ([]byte, error)) error {
	for {
		piece, err := more()
		if err != nil || len(piece) == 0 {
			return err
		}
	}
}

// summary describes a stream, which must be one that a backup may hold.
func summary(s bus.Snapshot) (StreamSummary, error) {
	var cfg struct {
		Name string `json:"name"`
	}
	var state struct {
		Messages uint64 `json:"messages"`
	}
	if err := errors.Join(json.Unmarshal(s.Config, &cfg), json.Unmarshal(s.State, &state)); err != nil {
		return StreamSummary{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !known(cfg.Name) {
		return StreamSummary{}, fmt.Errorf("%w: it has a stream %.80q, which is none of kiln's", ErrDamaged, cfg.Name)
	}
	return StreamSummary{Name: cfg.Name, Messages: state.Messages}, nil
}

// Restore makes streams of those in a backup, on a server that has none of them. What it has made it removes if it
// does not come to the end.
func Restore(ctx context.Context, r bus.Restorer, from io.Reader) error {
	var header Header
	var made []string
	err := read(from, visitor{
		begin: func(h Header) error { header = h; return nil },
		key:   func(key) error { return nil },
		stream: func(s bus.Snapshot, whole bool, more func() ([]byte, error)) error {
			d, err := summary(s)
			if err != nil {
				return err
			}
			found, err := r.Existing(ctx, []string{d.Name})
			if err == nil && len(found) > 0 {
				err = fmt.Errorf("stream %s: there is one already", d.Name)
			}
			if err != nil {
				return err
			}
			made = append(made, d.Name)
			if !whole {
				return r.Begin(ctx, s)
			}
			return r.Restore(ctx, s, more)
		},
	})
	for _, p := range header.Places {
		if err == nil && slices.Contains(made, p.Stream) {
			err = r.Place(ctx, p)
		}
	}
	if err != nil {
		return errors.Join(err, r.Remove(context.WithoutCancel(ctx), made))
	}
	return nil
}

// RestoreKeys writes the keys of a backup into dir. A key that is there already has to be the same.
func RestoreKeys(from io.Reader, dir string, names []string) error {
	return read(from, visitor{
		begin: func(Header) error { return nil },
		key: func(k key) error {
			if !slices.Contains(names, k.Name) {
				return fmt.Errorf("%w: it has a key %.80q, which is none of kiln's", ErrDamaged, k.Name)
			}
			return writeKey(filepath.Join(dir, k.Name), k.Data)
		},
		stream: func(_ bus.Snapshot, _ bool, more func() ([]byte, error)) error { return drain(more) },
	})
}

func writeKey(path string, data []byte) error {
	there, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(there, data):
		return nil
	case err == nil:
		return fmt.Errorf("%s: is there already, and another", path)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// A visitor is shown what is in a backup.
type visitor struct {
	begin func(Header) error
	key   func(key) error
	// stream reads the pieces of a stream to their end; of one that is not whole there are none.
	stream func(s bus.Snapshot, whole bool, more func() ([]byte, error)) error
}

// read shows a backup to v.
func read(from io.Reader, v visitor) error {
	r, h, err := newReader(from)
	if err != nil {
		return err
	}
	if err := v.begin(h); err != nil {
		return err
	}
	for {
		kind, body, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = v.frame(r, kind, body)
		}
		if err != nil {
			return err
		}
	}
}

func (v visitor) frame(r *reader, kind byte, body []byte) error {
	switch kind {
	case frameKey:
		var k key
		if err := decode(body, &k); err != nil {
			return err
		}
		return v.key(k)
	case frameStream, frameEmpty:
		var s bus.Snapshot
		if err := decode(body, &s); err != nil {
			return err
		}
		return v.stream(s, kind == frameStream, r.pieces(kind == frameStream))
	}
	return fmt.Errorf("%w: a part of an unknown kind %q", ErrDamaged, kind)
}

// pieces returns what returns the pieces of a stream one by one, and then an empty one.
func (r *reader) pieces(some bool) func() ([]byte, error) {
	ended := !some
	return func() ([]byte, error) {
		if ended {
			return nil, nil
		}
		kind, body, err := r.next()
		switch {
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("%w: a stream does not end", ErrDamaged)
		case err == nil && kind == frameEnd:
			ended, body = true, nil
		case err == nil && (kind != framePiece || len(body) == 0):
			err = fmt.Errorf("%w: a part of kind %q within a stream", ErrDamaged, kind)
		}
		return body, err
	}
}
