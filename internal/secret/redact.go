package secret

import (
	"bytes"
	"encoding/base64"
	"slices"
)

// mask replaces a secret value in output.
const mask = "***"

// minRedacted is the length below which a value is not masked: masking every "1" would say more
// than it hides.
const minRedacted = 4

// A Redactor masks secret values in a stream of bytes, also where a value is spread over several
// writes and where it appears in base64. One Redactor serves one stream; it is not safe for
// concurrent use.
type Redactor struct {
	values  [][]byte // longest first
	pending []byte   // end of the stream so far that may be the start of a value
}

// NewRedactor returns a redactor of these values. Several lines of a value are masked one by one too.
func NewRedactor(values []string) *Redactor {
	r := &Redactor{}
	add := func(b []byte) {
		if len(b) >= minRedacted && !slices.ContainsFunc(r.values, func(v []byte) bool { return bytes.Equal(v, b) }) {
			r.values = append(r.values, b)
		}
	}
	for _, v := range values {
		b := []byte(v)
		add(b)
		for line := range bytes.Lines(b) {
			add(bytes.TrimRight(line, "\r\n"))
		}
		for _, form := range base64Forms(b) {
			add(form)
		}
	}
	slices.SortFunc(r.values, func(a, b []byte) int { return len(b) - len(a) })
	return r
}

// base64Forms returns what of b's base64 encoding does not depend on its neighbours, for each of the
// three alignments at which b may stand in a longer text.
func base64Forms(b []byte) [][]byte {
	var forms [][]byte
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for shift := range 3 {
			padded := append(make([]byte, shift), b...)
			whole := len(padded) / 3 * 3
			e := []byte(enc.EncodeToString(padded[:whole]))
			skip := (shift*8 + 5) / 6 // characters that hold bits of the padding
			if len(e)-skip >= 8 {
				forms = append(forms, e[skip:])
			}
		}
	}
	return forms
}

// Write returns p with values masked. It may hold back the last bytes until the next Write or Flush.
// The result is valid until then.
func (r *Redactor) Write(p []byte) []byte {
	if len(r.values) == 0 {
		return p
	}
	buf := append(r.pending, p...)
	for _, v := range r.values {
		buf = bytes.ReplaceAll(buf, v, []byte(mask))
	}
	keep := r.partial(buf)
	out := buf[:len(buf)-keep]
	r.pending = slices.Clone(buf[len(buf)-keep:])
	return out
}

// Flush returns what was held back; the stream has ended or paused.
func (r *Redactor) Flush() []byte {
	out := r.pending
	r.pending = nil
	return out
}

// partial returns the length of the longest suffix of buf that begins a value.
func (r *Redactor) partial(buf []byte) int {
	longest := 0
	for _, v := range r.values {
		for n := min(len(v)-1, len(buf)); n > longest; n-- {
			if bytes.HasSuffix(buf, v[:n]) {
				longest = n
				break
			}
		}
	}
	return longest
}

// String masks the values in s.
func (r *Redactor) String(s string) string {
	b := []byte(s)
	for _, v := range r.values {
		b = bytes.ReplaceAll(b, v, []byte(mask))
	}
	return string(b)
}
