package webhook

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
)

// A batch is the byte batchFormat and one record after the other. A record is its length (4 bytes, big
// endian) and, each with its length before it as a varint: the hook's ID, its provider, its registry, pairs
// of names and values of headers after their number, and the compressed body; before that, the time it was
// received in nanoseconds since 1970.
const batchFormat = 1

// maxShared is the size of the largest body that is stored in a batch.
const maxShared = 1 << 20

// shareable reports whether a delivery may be stored in a batch. One that at first sight is no JSON is
// refused at once, and one that repeats its hook's secret must not be on the disk, not for a second either.
func shareable(h http.Header, hook Hook, raw []byte) bool {
	if len(raw) > maxShared {
		return false
	}
	body, err := payload(h, raw)
	if err != nil {
		return false
	}
	text := bytes.TrimSpace(body)
	brackets := len(text) > 1 && (text[0] == '{' && text[len(text)-1] == '}' || text[0] == '[' && text[len(text)-1] == ']')
	return brackets && !holds(body, hook.Secret) && !holds(body, hook.Previous)
}

// appendRecord appends a delivery to b: what is needed to decode it, and nothing else.
func appendRecord(b []byte, hook Hook, received time.Time, h http.Header, raw []byte) []byte {
	from := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.AppendVarint(b, received.UnixNano())
	b = appendText(b, hook.ID)
	b = appendText(b, hook.Provider)
	b = appendText(b, hook.Registry)
	at, n := len(b), byte(0)
	b = append(b, 0)
	for _, name := range keptHeaders {
		if v := h[name]; len(v) > 0 && v[0] != "" {
			b = appendText(b, name)
			b = appendText(b, clip(v[0], maxText))
			n++
		}
	}
	b[at] = n
	b = slices.Grow(b, s2.MaxEncodedLen(len(raw)))
	b = b[:len(b)+len(s2.Encode(b[len(b):cap(b)], raw))]
	binary.BigEndian.PutUint32(b[from:], uint32(len(b)-from-4))
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A record is a delivery of a batch, with the compressed body.
type record struct {
	hook     Hook // ID, Provider and Registry
	received time.Time
	header   http.Header
	packed   []byte
}

var errBatch = errors.New("batch of deliveries is damaged")

// records returns the records of a batch.
func records(batch []byte) ([]record, error) {
	if len(batch) == 0 || batch[0] != batchFormat {
		return nil, fmt.Errorf("%w: it is not in format %d", errBatch, batchFormat)
	}
	var all []record
	for b := batch[1:]; len(b) > 0; {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			return nil, errBatch
		}
		end := 4 + int(binary.BigEndian.Uint32(b))
		one, ok := parseRecord(b[4:end])
		if !ok {
			return nil, errBatch
		}
		all, b = append(all, one), b[end:]
	}
	return all, nil
}

func parseRecord(b []byte) (r record, ok bool) {
	nanos, n := binary.Varint(b)
	if n <= 0 {
		return record{}, false
	}
	c := cutter{rest: b[n:]}
	r.received = time.Unix(0, nanos)
	r.hook = Hook{ID: c.text(), Provider: c.text(), Registry: c.text(), Enabled: true}
	pairs := c.byte()
	r.header = make(http.Header, pairs)
	for range pairs {
		name := c.text()
		r.header[name] = []string{c.text()}
	}
	r.packed = c.rest
	return r, !c.failed
}

// body returns the body as it was sent.
func (r record) body(buf []byte) ([]byte, error) {
	n, err := s2.DecodedLen(r.packed)
	if err != nil || n > maxShared {
		return nil, errBatch
	}
	return s2.Decode(slices.Grow(buf[:0], n)[:n], r.packed)
}

// A cutter takes a record apart.
type cutter struct {
	rest   []byte
	failed bool
}

func (c *cutter) text() string {
	n, used := binary.Uvarint(c.rest)
	if used <= 0 || n > uint64(len(c.rest)-used) {
		c.failed, c.rest = true, nil
		return ""
	}
	s := string(c.rest[used : used+int(n)])
	c.rest = c.rest[used+int(n):]
	return s
}

func (c *cutter) byte() byte {
	if len(c.rest) == 0 {
		c.failed = true
		return 0
	}
	b := c.rest[0]
	c.rest = c.rest[1:]
	return b
}
