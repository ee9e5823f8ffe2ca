// Package backup writes the state of a server into one file, and makes a server's state of it again.
//
// What is in a backup is every stream that holds truth: requests and other facts, decisions, alarms, the records of
// runs, tasks, sealed secrets, hooks, tokens and so on; the keys of the data directory, unless they are left out;
// logs, if they are asked for. Images are not: they are the registry's, which is backed up beside. Leases, workers
// and assignments are not, because what they are about does not outlive the server.
//
// Consistency: the places of all readers are noted first, then the streams are read one after the other while the
// server goes on, each as it is at one moment, and what refers to something before what it refers to. A restored
// server is therefore as after a crash: every reader is given again what it had perhaps not seen the effect of, which
// changes nothing if it had; nothing refers to what is not there; and a run that a worker had is lost to it and
// attempted again. What came after the backup began may be in it or not.
//
// A backup that has been read to its end without an error is whole and undamaged. Reading and writing take memory for
// one piece of a stream.
package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"kiln/internal/bus"
)

// A backup begins with a line that names the format and its version. Then come frames: a byte that says what
// follows, its length in four bytes, and it. The last one is the SHA-256 of all that is before it.
const (
	magic    = "kiln backup "
	version  = 1
	maxFrame = 1 << 20

	frameHeader = 'h'
	frameKey    = 'k'
	frameStream = 's' // what a stream is; its pieces follow
	framePiece  = 'p'
	frameEnd    = 'e' // of the pieces
	frameEmpty  = 'n' // what a stream was of which nothing is kept but where it ended
	frameFailed = 'x' // the backup was given up
	frameSum    = 'z'
)

// ErrDamaged is returned for what is no backup, or not all of one.
var ErrDamaged = errors.New("not a whole backup")

// ErrNewer is returned for a backup that a newer version of kiln has made.
var ErrNewer = errors.New("made by a newer version of kiln")

// A Header says what a backup is.
type Header struct {
	Version string      `json:"version"` // of the program that has made it
	Created time.Time   `json:"created"`
	Keys    bool        `json:"keys"`
	Logs    bool        `json:"logs"`
	Places  []bus.Place `json:"places"`
}

// A key is a file of the data directory.
type key struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// A writer writes frames.
type writer struct {
	to  io.Writer
	sum hash.Hash
}

func newWriter(to io.Writer, h Header) (*writer, error) {
	w := &writer{to: to, sum: sha256.New()}
	if err := w.write([]byte(magic + strconv.Itoa(version) + "\n")); err != nil {
		return nil, err
	}
	return w, w.value(frameHeader, h)
}

func (w *writer) write(b []byte) error {
	w.sum.Write(b)
	_, err := w.to.Write(b)
	return err
}

func (w *writer) frame(kind byte, body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("backup: %d bytes are too many for a piece", len(body))
	}
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)))
	if err := w.write(head); err != nil {
		return err
	}
	return w.write(body)
}

func (w *writer) value(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.frame(kind, b)
}

func (w *writer) close() error { return w.frame(frameSum, w.sum.Sum(nil)) }

// A reader reads frames.
type reader struct {
	from   *bufio.Reader
	sum    hash.Hash
	buffer bytes.Buffer
	ended  bool
}

// newReader reads the beginning of a backup.
func newReader(from io.Reader) (*reader, Header, error) {
	r := &reader{from: bufio.NewReaderSize(from, 64<<10), sum: sha256.New()}
	var h Header
	line := make([]byte, 0, 32)
	for len(line) < cap(line) && !bytes.HasSuffix(line, []byte("\n")) {
		b, err := r.from.ReadByte()
		if err != nil {
			break // too short, as is seen below
		}
		line = append(line, b)
	}
	r.sum.Write(line)
	number, ok := strings.CutPrefix(string(line), magic)
	v, err := strconv.Atoi(strings.TrimSuffix(number, "\n"))
	switch {
	case !ok || err != nil || v < 1 || !strings.HasSuffix(number, "\n"):
		return nil, h, fmt.Errorf("%w: it does not begin as one", ErrDamaged)
	case v > version:
		return nil, h, fmt.Errorf("%w: its format is %d, this one knows %d", ErrNewer, v, version)
	}
	kind, body, err := r.next()
	if err == nil && kind != frameHeader {
		err = fmt.Errorf("%w: it has no header", ErrDamaged)
	}
	if err == nil {
		err = decode(body, &h)
	}
	return r, h, err
}

// next returns the next frame, which holds until the one after it is read, and io.EOF behind the last one.
func (r *reader) next() (kind byte, body []byte, err error) {
	if r.ended {
		if _, err := r.from.ReadByte(); !errors.Is(err, io.EOF) {
			return 0, nil, fmt.Errorf("%w: there is more behind its end", ErrDamaged)
		}
		return 0, nil, io.EOF
	}
	var head [5]byte
	if _, err := io.ReadFull(r.from, head[:]); err != nil {
		return 0, nil, cut(err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w: a piece of %d bytes", ErrDamaged, n)
	}
	r.buffer.Reset()
	if _, err := io.CopyN(&r.buffer, r.from, int64(n)); err != nil {
		return 0, nil, cut(err)
	}
	body = r.buffer.Bytes()
	switch head[0] {
	case frameSum:
		if subtle.ConstantTimeCompare(body, r.sum.Sum(nil)) != 1 {
			return 0, nil, fmt.Errorf("%w: its checksum is another", ErrDamaged)
		}
		r.ended = true
		return r.next()
	case frameFailed:
		return 0, nil, fmt.Errorf("%w: it was given up: %s", ErrDamaged, body)
	}
	r.sum.Write(head[:])
	r.sum.Write(body)
	return head[0], body, nil
}

// cut is the error of a file that ends too soon, or err.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: its end is missing", ErrDamaged)
	}
	return err
}

func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}
