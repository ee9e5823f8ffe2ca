package index

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// A key is a run ID, filled up with zeros. No ID is longer.
type key [16]byte

func keyOf(id string) (k key, ok bool) {
	return k, copy(k[:], id) == len(id)
}

func (k key) String() string { return strings.TrimRight(string(k[:]), "\x00") }

// facets are what a record is selected by, as they are stored beside it.
type facets struct {
	state, cause, lane, task, uid, ref, commit string

	terms []uint32 // hashes of the names of its bases and images
}

// facetsOf returns the facets of a record.
func facetsOf(r run.Run) facets {
	f := facets{state: string(r.State), cause: r.Cause.Kind, lane: laneName(r.Lane), task: task.NameKey(r.Task), uid: r.TaskUID,
		ref: shortRef(r.Cause.Ref), commit: strings.ToLower(r.Cause.Commit)}
	for _, p := range []*string{&f.cause, &f.lane, &f.task, &f.uid, &f.ref, &f.commit} {
		*p = strings.ReplaceAll(*p, separator, "")
	}
	for _, b := range r.Bases {
		f.addBase(b.Ref)
	}
	for _, m := range r.Cause.Moved {
		f.addBase(m.Ref)
	}
	for _, i := range r.Images {
		f.add("image "+i.Repository, "image "+i.Repository+":"+i.Tag, "image "+i.Repository+"@"+i.Digest)
	}
	return f
}

func (f *facets) addBase(ref string) {
	if name, repository := baseName(ref); name != "" {
		f.add("base "+name, "base "+repository)
	}
}

func (f *facets) add(terms ...string) {
	for _, t := range terms {
		if h := hash(t); !slices.Contains(f.terms, h) {
			f.terms = append(f.terms, h)
		}
	}
}

// packFacets returns facets as they are stored.
func packFacets(f facets) (string, []byte) {
	terms := make([]byte, 0, 4*len(f.terms))
	for _, t := range f.terms {
		terms = binary.LittleEndian.AppendUint32(terms, t)
	}
	return strings.Join([]string{f.state, f.cause, f.lane, f.task, f.uid, f.ref, f.commit}, separator), terms
}

// separator cannot be in a facet: a record's texts are cleaned of it before.
const separator = "\x1f"

// unpackFacets is the reverse of packFacets.
func unpackFacets(packed string, terms []byte) (facets, error) {
	p := strings.Split(packed, separator)
	if len(p) != 7 || len(terms)%4 != 0 {
		return facets{}, errors.New("stored facets are damaged")
	}
	f := facets{state: p[0], cause: p[1], lane: p[2], task: p[3], uid: p[4], ref: p[5], commit: p[6]}
	for ; len(terms) > 0; terms = terms[4:] {
		f.terms = append(f.terms, binary.LittleEndian.Uint32(terms))
	}
	return f, nil
}

func hash(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum32()
}

// laneName is the lane that a run waits in: runs that name none are requests.
func laneName(lane string) string { return cmp.Or(lane, string(decide.ClassManual)) }

// shortRef is a branch or tag without what its full name begins with.
func shortRef(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
}

// baseName returns the canonical name of a base image, without its digest, and its repository. Both are
// empty if ref is no reference.
func baseName(ref string) (name, repository string) {
	ref, digest, _ := strings.Cut(ref, "@")
	n, err := graph.Canonical(ref, nil)
	if err != nil {
		return "", ""
	}
	if digest != "" && n.Repository()+":latest" == string(n) && !strings.HasSuffix(ref, ":latest") {
		return n.Repository(), n.Repository() // it had no tag
	}
	return string(n), n.Repository()
}

// A row is a run as the table knows it: what it takes to say which runs a query selects.
type row struct {
	created        int64 // nanoseconds
	id             key
	commit         uint64 // its first 16 digits
	task, uid, ref uint32 // numbers of words
	state, cause   uint8  // likewise
	lane           uint8
	final, gone    bool
	mask           mask // of all terms: most rows need not be looked at closer
	terms          []uint32
}

func compareRows(a, b row) int {
	return cmp.Or(cmp.Compare(a.created, b.created), slices.Compare(a.id[:], b.id[:]))
}

// A table holds a row of each run, oldest first. A hundred thousand of them are 10 MB and are looked
// through in a millisecond, whatever they are asked for. It is not safe for concurrent use.
type table struct {
	rows  []row
	fresh []row // that are not in their place yet, in the order in which they came
	names words // of tasks, their UIDs and refs
	small words // states, causes and lanes
}

// row makes the row of a run.
func (t *table) row(id key, created int64, final bool, f facets) row {
	var m mask
	for _, term := range f.terms {
		b := bits(term)
		m[0], m[1] = m[0]|b[0], m[1]|b[1]
	}
	return row{id: id, mask: m, created: created, final: final, commit: digits(f.commit), terms: slices.Clip(f.terms),
		task: t.names.number(f.task), uid: t.names.number(f.uid), ref: t.names.number(f.ref),
		state: uint8(t.small.number(f.state)), cause: uint8(t.small.number(f.cause)), lane: uint8(t.small.number(f.lane))}
}

// A mask has two bits of each of a row's terms.
type mask [2]uint64

// bits is the mask of one term.
func bits(term uint32) mask { return mask{1 << (term % 64), 1 << (term >> 6 % 64)} }

// hasAny reports whether the row has one of the terms.
func (r *row) hasAny(terms []uint32) bool {
	for _, t := range terms {
		if b := bits(t); r.mask[0]&b[0] != 0 && r.mask[1]&b[1] != 0 && slices.Contains(r.terms, t) {
			return true
		}
	}
	return false
}

// put takes in a row that replaces the one of the same run.
func (t *table) put(r row) { t.fresh = append(t.fresh, r) }

// few is how many rows are put in their places one by one.
const few = 16

// settle puts fresh rows in their places.
func (t *table) settle() {
	if len(t.fresh) == 0 {
		return
	}
	if len(t.fresh) > few {
		t.merge()
	} else {
		for _, r := range t.fresh {
			t.place(r)
		}
	}
	t.fresh = nil
}

func (t *table) place(r row) {
	i, known := slices.BinarySearchFunc(t.rows, r, compareRows)
	switch {
	case known && r.gone:
		t.rows = slices.Delete(t.rows, i, i+1)
	case known:
		t.rows[i] = r
	case !r.gone:
		t.rows = slices.Insert(t.rows, i, r)
	}
}

func (t *table) merge() {
	all := append(t.rows, t.fresh...)
	slices.SortStableFunc(all, compareRows)
	kept := all[:0]
	for i, r := range all {
		last := i+1 == len(all) || compareRows(r, all[i+1]) != 0 // of several of one run
		if last && !r.gone {
			kept = append(kept, r)
		}
	}
	clear(all[len(kept):])
	t.rows = kept
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

// digits returns the first 16 hexadecimal digits of a commit as a number; missing ones are zeros.
func digits(commit string) uint64 {
	var n uint64
	for i := range 16 {
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
