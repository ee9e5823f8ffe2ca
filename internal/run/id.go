package run

import (
	"io"
	"strconv"
	"sync"
	"time"
)

const idAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

// idEpoch is what the time prefix of an ID counts from; it keeps IDs short.
var idEpoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// NewID mints a run ID: 12 characters of [a-z0-9], the first 7 the time in seconds (so IDs sort by
// age), the last 5 random. It starts with a letter, so it is valid as an image tag and as a host name.
// It fails only if random does. Two of one second are the same with a probability of 1 to 60 million: who
// mints many uses a [Minter].
func NewID(now time.Time, random io.Reader) (string, error) {
	var r [5]byte
	for i := range r {
		for {
			var b [1]byte
			if _, err := io.ReadFull(random, b[:]); err != nil {
				return "", err
			}
			if b[0] < 252 { // 7*36: no modulo bias
				r[i] = idAlphabet[b[0]%36]
				break
			}
		}
	}
	var p [7]byte
	p[0] = 'r'
	s := uint64(max(0, now.Unix()-idEpoch.Unix()))
	for i := 6; i > 0; i-- {
		p[i] = idAlphabet[s%36]
		s /= 36
	}
	return string(p[:]) + string(r[:]), nil
}

// A Minter mints IDs as [NewID] does, none of them twice: within a second it counts on from the first.
// It is safe for concurrent use; the zero Minter is ready.
type Minter struct {
	mu   sync.Mutex
	last string
	at   time.Time // of the second that last is of
}

// setBack is by how much a clock may be set back with no ID minted twice, nor out of order.
const setBack = time.Hour

// New mints an ID. It fails only if random does.
func (m *Minter) New(now time.Time, random io.Reader) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now = now.Truncate(time.Second)
	if m.last != "" && !now.After(m.at) && m.at.Sub(now) < setBack {
		m.last = following(m.last)
		return m.last, nil
	}
	id, err := NewID(now, random)
	if err == nil {
		m.last, m.at = id, now
	}
	return id, err
}

// following counts the random part of an ID up by one; its first follows its last.
func following(id string) string {
	b := []byte(id)
	for i := len(b) - 1; i > 6; i-- {
		switch b[i] {
		case 'z':
			b[i] = '0'
			continue
		case '9':
			b[i] = 'a'
		default:
			b[i]++
		}
		break
	}
	return string(b)
}

// ValidID reports whether s has the form of a run ID. Use it before a user's text becomes part of a
// subject, a key or a path.
func ValidID(s string) bool {
	if len(s) != 12 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// IDTime returns when a run of that ID was made due, to the second. It is zero if s is no run ID.
func IDTime(s string) time.Time {
	if !ValidID(s) || s[0] != 'r' {
		return time.Time{}
	}
	seconds, err := strconv.ParseInt(s[1:7], 36, 64)
	if err != nil {
		return time.Time{}
	}
	return idEpoch.Add(time.Duration(seconds) * time.Second)
}
