package index

import (
	"math"
	"slices"
	"strings"

	"kiln/internal/task"
)

// A filter is a query in terms of a table.
type filter struct {
	since, until   int64 // until is excluded
	states         []uint8
	cause, lane    *uint32
	task, uid, ref *uint32
	of             map[uint32]bool // tasks, any of them; nil for all
	low, high      uint64          // of the commit
	id, idMask     key             // bits that the ID has
	terms          [][]uint32      // of each one is needed
	masks          []mask          // of the first of them
}

// filter translates q; ok is false if no run can match.
func (t *table) filter(q Query) (f filter, ok bool) {
	f = filter{since: math.MinInt64, until: math.MaxInt64, high: math.MaxUint64}
	if !q.Since.IsZero() {
		f.since = q.Since.UnixNano()
	}
	if !q.Until.IsZero() {
		f.until = q.Until.UnixNano()
	}
	for _, s := range q.States {
		if n, known := t.small.numbers[string(s)]; known {
			f.states = append(f.states, uint8(n))
		}
	}
	ok = len(q.States) == 0 || len(f.states) > 0
	f.cause = number(&t.small, q.Cause, &ok)
	f.lane = number(&t.small, q.Lane, &ok)
	f.task = number(&t.names, task.NameKey(q.Task), &ok)
	if q.Of != nil {
		f.of = map[uint32]bool{}
		for name, n := range t.names.numbers {
			if q.Of(name) { // it may be no name of a task, then no row has it as such
				f.of[n] = true
			}
		}
	}
	f.uid = number(&t.names, q.TaskUID, &ok)
	f.ref = number(&t.names, shortRef(q.Ref), &ok)
	if commit := strings.ToLower(q.Commit); commit != "" {
		n := min(len(commit), commitDigits)
		f.low = digits(commit[:n])
		f.high = f.low | math.MaxUint64>>(4*n)
	}
	if q.Base != "" {
		f.terms = append(f.terms, baseTerms(q.Base))
	}
	if q.Image != "" {
		f.terms = append(f.terms, imageTerms(q.Image))
	}
	if len(f.terms) > 0 {
		for _, t := range f.terms[0] {
			f.masks = append(f.masks, bits(t))
		}
	}
	id, fits := keyOf(q.Prefix)
	f.id = id
	f.idMask, _ = keyOf(strings.Repeat("\xff", min(len(q.Prefix), maxID)))
	return f, ok && fits && !strings.Contains(q.Commit+q.Base+q.Image, separator) // which no name has
}

// number returns the number of a word that is asked for; ok becomes false if no row has it.
func number(w *words, s string, ok *bool) *uint32 {
	if s == "" {
		return nil
	}
	n, known := w.numbers[s]
	*ok = *ok && known
	return &n
}

func baseTerms(ref string) []uint32 { return []uint32{hash(baseWanted(ref))} }

// baseWanted is the name of a base image that is asked for.
func baseWanted(ref string) string {
	name, repository := baseName(ref)
	if !tagged(ref) {
		name = repository
	}
	return nameBase + name
}

// tagged reports whether a reference has a tag.
func tagged(ref string) bool {
	ref, _, _ = strings.Cut(ref, "@")
	return strings.LastIndexByte(ref, ':') > strings.LastIndexByte(ref, '/')
}

func imageTerms(image string) []uint32 {
	terms := []uint32{hash(nameImage + image)}
	if _, rest, ok := strings.Cut(image, "/"); ok { // what it begins with may be the registry
		terms = append(terms, hash(nameImage+rest))
	}
	return terms
}

// last returns the index of the last row before the one at i that may be of a run that is asked for, or -1.
// Names are compared by their hashes.
func (f *filter) last(c *columns, i int) int {
	for {
		if i = f.candidate(c, i); i < 0 || f.match(c, i) {
			return i
		}
	}
}

// candidate returns the last row before i that matches in one respect, the one that is likely to match least.
func (f *filter) candidate(c *columns, i int) int {
	switch {
	case f.task != nil:
		return lastOf(c.task, i, *f.task)
	case f.uid != nil:
		return lastOf(c.uid, i, *f.uid)
	case f.ref != nil:
		return lastOf(c.ref, i, *f.ref)
	case f.high-f.low != math.MaxUint64:
		return lastWithin(c.commit, i, f.low, f.high)
	case f.idMask != key{}:
		return f.lastID(c.places, i)
	case len(f.masks) > 0:
		return lastMasked(c.masks, i, f.masks)
	}
	return i - 1
}

func lastOf(column []uint32, i int, want uint32) int {
	for i--; i >= 0 && column[i] != want; i-- {
	}
	return i
}

func lastWithin(column []uint64, i int, low, high uint64) int {
	for i--; i >= 0 && (column[i] < low || column[i] > high); i-- {
	}
	return i
}

// lastID returns the last row before i with the wanted beginning of an ID.
func (f *filter) lastID(column []place, i int) int {
	for i--; i >= 0 && !f.hasID(column[i].id); i-- {
	}
	return i
}

func (f *filter) hasID(id key) bool {
	return id.high&f.idMask.high == f.id.high && id.low&f.idMask.low == f.id.low
}

func lastMasked(column []mask, i int, any []mask) int {
	for i--; i >= 0; i-- {
		for _, m := range any {
			if column[i].has(m) {
				return i
			}
		}
	}
	return i
}

// match reports whether the row at i may be of a run that is asked for.
func (f *filter) match(c *columns, i int) bool {
	k := &c.kinds[i]
	switch {
	case len(f.states) > 0 && !slices.Contains(f.states, k.state),
		f.cause != nil && *f.cause != uint32(k.cause),
		f.lane != nil && *f.lane != uint32(k.lane),
		f.task != nil && *f.task != c.task[i],
		f.of != nil && !f.of[c.task[i]],
		f.uid != nil && *f.uid != c.uid[i],
		f.ref != nil && *f.ref != c.ref[i],
		c.commit[i] < f.low || c.commit[i] > f.high,
		!f.hasID(c.places[i].id):
		return false
	}
	for _, any := range f.terms {
		if !c.hasAny(i, any) {
			return false
		}
	}
	return true
}

// has reports whether a mask has the bits of another.
func (m mask) has(o mask) bool { return m[0]&o[0] == o[0] && m[1]&o[1] == o[1] }

// hasAny reports whether the row at i has one of the terms.
func (c *columns) hasAny(i int, terms []uint32) bool {
	s := c.spans[i]
	for _, t := range terms {
		if c.masks[i].has(bits(t)) && slices.Contains(c.terms[s.from:s.to], t) {
			return true
		}
	}
	return false
}

// exact reports whether q selects a run with these names, as far as a row cannot tell exactly.
func (q *Query) exact(names []byte) bool {
	return (q.Commit == "" || hasCommit(names, strings.ToLower(q.Commit))) &&
		(q.Base == "" || hasName(names, baseWanted(q.Base))) &&
		(q.Image == "" || hasName(names, nameImage+q.Image))
}
