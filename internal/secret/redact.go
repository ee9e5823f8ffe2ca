package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"slices"
	"strconv"
)

// mask replaces a secret value in output.
const mask = "***"

const (
	// minRedacted is the length below which a value is not masked: masking every "1" would say more
	// than it hides.
	minRedacted = 4
	// minEncoded is the same for what base64 makes of a value, in characters.
	minEncoded = 6
	// minWrapped is how long what base64 makes of a value must be to be found also where it is spread
	// over lines: programs break base64 at 76 characters or less, wherever a value stands in it.
	minWrapped = 12
	// lead is how many characters of wrapped base64 may end a line and be shown, so that not every line
	// that happens to end in the right character is held back. They are less than three bytes.
	lead = 3
)

// A Redactor masks secret values in a stream of bytes, also where a value is spread over several
// writes, where it is quoted or escaped as in JSON and URLs, and where it appears in base64, in lines
// of any length. One Redactor serves one stream; it is not safe for concurrent use.
type Redactor struct {
	plain   matcher
	encoded matcher // without lead; found whatever line breaks are in between
	begun   matcher // how such a value may begin at the end of what has been written
	pending []byte  // end of the stream so far that may be the start of a value
	flat    []byte  // of the last write, to be used again
}

// NewRedactor returns a redactor of these values. Several lines of a value are masked one by one too.
func NewRedactor(values []string) *Redactor {
	r := &Redactor{}
	for _, v := range values {
		b := []byte(v)
		r.plain.add(b)
		for line := range bytes.Lines(b) {
			r.plain.add(bytes.TrimSpace(line))
		}
		quoted := strconv.Quote(v)
		r.plain.add([]byte(quoted[1 : len(quoted)-1]))
		r.plain.add([]byte(url.QueryEscape(v)))
		r.plain.add([]byte(url.PathEscape(v)))
		for _, form := range base64Forms(b) {
			if len(form) < minWrapped {
				r.plain.add(form)
				continue
			}
			r.encoded.add(form[lead:])
			for skip := range lead + 1 {
				r.begun.add(form[skip:])
			}
		}
	}
	return r
}

// base64Forms returns what of b's base64 encoding does not depend on its neighbours, for each of the
// three alignments at which b may stand in a longer text.
func base64Forms(b []byte) [][]byte {
	var forms [][]byte
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			e := []byte(enc.EncodeToString(append(make([]byte, shift), b...)))
			// A character has six bits: those that hold bits of what stands before or behind are left out.
			from, to := (shift*8+5)/6, (shift+len(b))*8/6
			if to-from >= minEncoded {
				forms = append(forms, e[from:to])
			}
		}
	}
	return forms
}

// A span is a part of a text.
type span struct{ from, to int }

// Write returns p with values masked. It may hold back the last bytes until the next Write or Flush.
// The result is valid until then.
func (r *Redactor) Write(p []byte) []byte {
	if len(r.plain.values)+len(r.encoded.values) == 0 {
		return p
	}
	buf := p
	if len(r.pending) > 0 {
		buf = append(r.pending, p...)
	}
	found, keep := r.search(buf)
	for _, f := range found {
		keep = max(keep, f.to)
	}
	out := redacted(buf[:keep], found)
	r.pending = slices.Clone(buf[keep:])
	return out
}

// Flush returns what was held back; the stream has ended or paused.
func (r *Redactor) Flush() []byte {
	out := r.pending
	r.pending = nil
	return out
}

// String masks the values in s.
func (r *Redactor) String(s string) string {
	b := []byte(s)
	found, _ := r.search(b)
	return string(redacted(b, found))
}

// search returns where values are in buf, by their beginning, and from where on buf may hold the start of
// one.
func (r *Redactor) search(buf []byte) (found []span, partial int) {
	found = r.plain.find(buf)
	partial = len(buf) - r.plain.partial(buf, 1)
	if len(r.encoded.values) == 0 {
		return found, partial
	}
	r.flat = appendFlat(r.flat[:0], buf)
	spans := r.encoded.find(r.flat)
	least := 1
	if n := len(buf); n > 0 && isBreak(buf[n-1]) {
		least = lead + 1
	}
	start := len(r.flat) - r.begun.partial(r.flat, least)
	if len(spans) == 0 && start == len(r.flat) {
		return found, partial
	}
	// Back to positions in buf: the bytes of flat are those of buf that are no line breaks.
	at := make([]int, 0, len(r.flat)+1)
	for i, c := range buf {
		if !isBreak(c) {
			at = append(at, i)
		}
	}
	for _, s := range spans {
		from := at[s.from]
		for range lead { // or what stands in its place: it does no harm
			if from > 0 && isBase64(buf[from-1]) {
				from--
			}
		}
		found = append(found, span{from, at[s.to-1] + 1})
	}
	if start < len(r.flat) {
		partial = min(partial, at[start])
	}
	slices.SortFunc(found, func(a, b span) int { return a.from - b.from })
	return found, partial
}

func isBreak(c byte) bool { return c == '\n' || c == '\r' }

func isBase64(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

// appendFlat appends b without its line breaks to dst.
func appendFlat(dst, b []byte) []byte {
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n')
		line := b
		if n < 0 {
			b = nil
		} else {
			line, b = b[:n], b[n+1:]
		}
		for len(line) > 0 {
			r := bytes.IndexByte(line, '\r')
			if r < 0 {
				dst = append(dst, line...)
				break
			}
			dst, line = append(dst, line[:r]...), line[r+1:]
		}
	}
	return dst
}

// redacted returns b with the spans masked, which are ordered by their beginning.
func redacted(b []byte, found []span) []byte {
	if len(found) == 0 {
		return b
	}
	out := make([]byte, 0, len(b))
	end := 0
	for _, f := range found {
		if f.from >= end {
			out = append(append(out, b[end:f.from]...), mask...)
		}
		end = max(end, f.to)
	}
	return append(out, b[end:]...)
}

// A matcher finds many values in one pass.
type matcher struct {
	values  [][]byte
	byStart map[uint32][][]byte // by their first four bytes
	starts  [1 << 10]bool       // whether there may be one, by a hash of these
}

// add adds a value, unless it is too short or there already.
func (m *matcher) add(v []byte) {
	if len(v) < minRedacted {
		return
	}
	k := start(v)
	if slices.ContainsFunc(m.byStart[k], func(o []byte) bool { return bytes.Equal(o, v) }) {
		return
	}
	if m.byStart == nil {
		m.byStart = map[uint32][][]byte{}
	}
	m.values = append(m.values, v)
	m.byStart[k] = append(m.byStart[k], v)
	m.starts[hash(k)] = true
}

// start is the first four bytes of b.
func start(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

func hash(start uint32) uint32 { return start * 2654435761 >> 22 }

// find returns where values are in b. They may overlap.
func (m *matcher) find(b []byte) (found []span) {
	if len(m.values) <= fewValues {
		return m.findFew(b)
	}
	for i := 0; i+minRedacted <= len(b); i++ {
		k := start(b[i:])
		if !m.starts[hash(k)] {
			continue
		}
		for _, v := range m.byStart[k] {
			if bytes.HasPrefix(b[i:], v) {
				found = append(found, span{i, i + len(v)})
			}
		}
	}
	return found
}

// fewValues are quicker looked for one after the other.
const fewValues = 16

func (m *matcher) findFew(b []byte) (found []span) {
	for _, v := range m.values {
		for from := 0; ; {
			i := bytes.Index(b[from:], v)
			if i < 0 {
				break
			}
			found = append(found, span{from + i, from + i + len(v)})
			from += i + 1
		}
	}
	slices.SortFunc(found, func(a, b span) int { return a.from - b.from })
	return found
}

// partial returns the length of the longest end of b, of least bytes or more, that begins a value.
func (m *matcher) partial(b []byte, least int) int {
	longest := 0
	for _, v := range m.values {
		longest = max(longest, len(v)-1)
	}
	for i := max(0, len(b)-longest); len(b)-i >= max(least, minRedacted); i++ {
		k := start(b[i:])
		if !m.starts[hash(k)] {
			continue
		}
		for _, v := range m.byStart[k] {
			if len(v) > len(b)-i && bytes.HasPrefix(v, b[i:]) {
				return len(b) - i
			}
		}
	}
	for n := min(len(b), minRedacted-1); n >= least; n-- {
		for _, v := range m.values {
			if bytes.HasPrefix(v, b[len(b)-n:]) {
				return n
			}
		}
	}
	return 0
}
