package index

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sort"
	"strings"
	"time"
)

// A key is a run ID, filled up with zeros, as two numbers: keys are ordered as IDs are. No ID is longer.
type key struct{ high, low uint64 }

// maxID is the longest ID in bytes.
const maxID = 16

func keyOf(id string) (k key, ok bool) {
	var b [maxID]byte
	ok = copy(b[:], id) == len(id)
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, ok
}

func (k key) String() string {
	var b [maxID]byte
	binary.BigEndian.PutUint64(b[:8], k.high)
	binary.BigEndian.PutUint64(b[8:], k.low)
	return strings.TrimRight(string(b[:]), "\x00")
}

// A place is where a run is in the order of the table: by its creation, then by its ID.
type place struct {
	created int64 // nanoseconds
	id      key
}

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.created, o.created), cmp.Compare(p.id.high, o.id.high), cmp.Compare(p.id.low, o.id.low))
}

// A row is a run as the table knows it: what it takes to say which runs a query selects.
type row struct {
	place
	commit         uint64 // its first digits
	task, uid, ref uint32 // numbers of words
	kind           kind
	gone           bool
	terms          []uint32
}

// A kind is what there are few of. The first three are numbers of words.
type kind struct {
	state, cause, lane uint8
	final              bool
}

// A span is where a row's terms are.
type span struct{ from, to uint32 }

// A mask has two bits of each of a row's terms: most rows need not be looked at closer.
type mask [2]uint64

// bits is the mask of one term.
func bits(term uint32) mask { return mask{1 << (term % 64), 1 << (term >> 6 % 64)} }

func maskOf(terms []uint32) (m mask) {
	for _, t := range terms {
		b := bits(t)
		m[0], m[1] = m[0]|b[0], m[1]|b[1]
	}
	return m
}

// columns are rows, oldest first. What a query asks for is looked for in one column, so that little memory is
// read; and there are no pointers in them, so that the garbage collector does not read them at all.
type columns struct {
	places         []place
	commit         []uint64
	task, uid, ref []uint32
	kinds          []kind
	masks          []mask
	spans          []span // in terms
	terms          []uint32
	unused         int // terms that no row has any more
}

// A table holds a row of each run. A hundred thousand of them are about 11 MB and are looked through in less
// than a millisecond, whatever they are asked for. It is not safe for concurrent use.
type table struct {
	columns
	fresh []row // that are not in their place yet, in the order in which they came
	names words // of tasks, their UIDs and refs
	small words // states, causes and lanes
}

// row makes the row of a run.
func (t *table) row(at place, final bool, f facets) row {
	return row{place: at, commit: digits(f.commit), terms: f.terms,
		task: t.names.number(f.task), uid: t.names.number(f.uid), ref: t.names.number(f.ref),
		kind: kind{uint8(t.small.number(f.state)), uint8(t.small.number(f.cause)), uint8(t.small.number(f.lane)), final}}
}

const (
	few  = 16   // rows that are put in their places one by one
	near = 4096 // rows that are moved to make room for one at once
)

// put takes in a row that replaces the one of the same run. If that is much work, it waits for others.
func (t *table) put(r row) {
	if i, known := t.find(r.place); len(t.fresh) == 0 && (known && !r.gone || len(t.places)-i <= near) {
		t.place(i, known, r)
		return
	}
	t.fresh = append(t.fresh, r)
}

// settled reports whether all rows are in their places.
func (t *table) settled() bool { return len(t.fresh) == 0 }

// settle puts fresh rows in their places.
func (t *table) settle() {
	if len(t.fresh) > few {
		t.columns = t.merge(t.fresh)
	} else {
		for _, r := range t.fresh {
			i, known := t.find(r.place)
			t.place(i, known, r)
		}
	}
	t.fresh = nil
}

// find returns the index of the row at a place, or of the first one behind it.
func (c *columns) find(p place) (i int, known bool) {
	i = sort.Search(len(c.places), func(i int) bool { return c.places[i].compare(p) >= 0 })
	return i, i < len(c.places) && c.places[i] == p
}

// place puts a row where find has said.
func (c *columns) place(i int, known bool, r row) {
	switch {
	case known && r.gone:
		c.remove(i)
	case known:
		c.replace(i, r)
	case !r.gone:
		c.insert(i, r)
	}
}

func (c *columns) insert(i int, r row) {
	c.places = slices.Insert(c.places, i, r.place)
	c.commit = slices.Insert(c.commit, i, r.commit)
	c.task = slices.Insert(c.task, i, r.task)
	c.uid = slices.Insert(c.uid, i, r.uid)
	c.ref = slices.Insert(c.ref, i, r.ref)
	c.kinds = slices.Insert(c.kinds, i, r.kind)
	c.masks = slices.Insert(c.masks, i, maskOf(r.terms))
	c.spans = slices.Insert(c.spans, i, c.keep(r.terms))
}

func (c *columns) replace(i int, r row) {
	c.commit[i], c.task[i], c.uid[i], c.ref[i], c.kinds[i] = r.commit, r.task, r.uid, r.ref, r.kind
	if s := c.spans[i]; !slices.Equal(c.terms[s.from:s.to], r.terms) {
		c.drop(s)
		c.spans[i] = span{}
		c.masks[i], c.spans[i] = maskOf(r.terms), c.keep(r.terms)
	}
}

func (c *columns) remove(i int) {
	c.drop(c.spans[i])
	c.places = slices.Delete(c.places, i, i+1)
	c.commit = slices.Delete(c.commit, i, i+1)
	c.task = slices.Delete(c.task, i, i+1)
	c.uid = slices.Delete(c.uid, i, i+1)
	c.ref = slices.Delete(c.ref, i, i+1)
	c.kinds = slices.Delete(c.kinds, i, i+1)
	c.masks = slices.Delete(c.masks, i, i+1)
	c.spans = slices.Delete(c.spans, i, i+1)
}

// keep stores the terms of a row. When most of what is stored is of no row any more, that is left behind.
func (c *columns) keep(terms []uint32) span {
	if c.unused > near && c.unused > len(c.terms)/2 {
		used := make([]uint32, 0, len(c.terms)-c.unused+len(terms))
		for i, s := range c.spans {
			from := uint32(len(used))
			used = append(used, c.terms[s.from:s.to]...)
			c.spans[i] = span{from, uint32(len(used))}
		}
		c.terms, c.unused = used, 0
	}
	from := uint32(len(c.terms))
	c.terms = append(c.terms, terms...)
	return span{from, uint32(len(c.terms))}
}

func (c *columns) drop(s span) { c.unused += int(s.to - s.from) }

// merge returns the columns with rows put in their places; of several of one run, the last.
func (c *columns) merge(rows []row) columns {
	slices.SortStableFunc(rows, func(a, b row) int { return a.compare(b.place) })
	n := columnsFor(len(c.places)+len(rows), len(c.terms)-c.unused)
	done := 0
	for i, r := range rows {
		if i+1 < len(rows) && rows[i+1].place == r.place {
			continue
		}
		at, known := c.find(r.place)
		n.copy(c, done, at)
		if done = at; known {
			done++
		}
		if !r.gone {
			n.insert(len(n.places), r)
		}
	}
	n.copy(c, done, len(c.places))
	return n
}

// columnsFor returns empty columns that have room for rows and for terms.
func columnsFor(rows, terms int) columns {
	return columns{places: make([]place, 0, rows), commit: make([]uint64, 0, rows), task: make([]uint32, 0, rows), uid: make([]uint32, 0, rows),
		ref: make([]uint32, 0, rows), kinds: make([]kind, 0, rows), masks: make([]mask, 0, rows), spans: make([]span, 0, rows), terms: make([]uint32, 0, terms)}
}

// copy appends rows of others.
func (c *columns) copy(o *columns, from, to int) {
	c.places = append(c.places, o.places[from:to]...)
	c.commit = append(c.commit, o.commit[from:to]...)
	c.task = append(c.task, o.task[from:to]...)
	c.uid = append(c.uid, o.uid[from:to]...)
	c.ref = append(c.ref, o.ref[from:to]...)
	c.kinds = append(c.kinds, o.kinds[from:to]...)
	c.masks = append(c.masks, o.masks[from:to]...)
	for _, s := range o.spans[from:to] {
		c.spans = append(c.spans, c.keep(o.terms[s.from:s.to]))
	}
}

// words numbers the texts that many rows have in common, so that a row is small.
type words struct {
	numbers map[string]uint32
}

// number returns the number of a word, a new one if need be.
func (w *words) number(s string) uint32 {
	if n, ok := w.numbers[s]; ok {
		return n
	}
	if w.numbers == nil {
		w.numbers = map[string]uint32{}
	}
	n := uint32(len(w.numbers))
	w.numbers[strings.Clone(s)] = n
	return n
}

// commitDigits is how many digits of a commit a row has.
const commitDigits = 16

// digits returns the first hexadecimal digits of a commit as a number; missing ones are zeros.
func digits(commit string) uint64 {
	var n uint64
	for i := range commitDigits {
		n <<= 4
		if i < len(commit) {
			n |= uint64(max(0, strings.IndexByte("0123456789abcdef", commit[i])))
		}
	}
	return n
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
