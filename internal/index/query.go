package index

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
	"kiln/internal/task"
)

// A Query selects runs: those to which all of its fields apply that are not empty.
type Query struct {
	Prefix string // of the run ID
	Before string // a run ID: only runs older than it
	Limit  int    // at most this many; 1 to 1000

	Task    string // name of the task
	TaskUID string
	States  []run.State // any of them
	Cause   string      // its kind
	Lane    string      // a decide.Class
	Since   time.Time   // created then or later
	Until   time.Time   // created earlier
	Commit  string      // the beginning of its ID
	Ref     string      // branch or tag, in full or without refs/heads/ and refs/tags/
	// Base is a base image that was used, or whose change made the run due: a reference with a tag, or a
	// repository, which is any of its tags.
	Base string
	// Image is a published image: repository, repository:tag or repository@digest; with or without the
	// registry.
	Image string
}

// A filter is a query in terms of a table.
type filter struct {
	prefix         []byte
	since, until   int64 // until is excluded
	states         []uint8
	cause, lane    *uint8
	task, uid, ref *uint32
	low, high      uint64     // of the commit
	terms          [][]uint32 // of each one is needed
}

// filter translates q; ok is false if no run can match.
func (t *table) filter(q Query) (f filter, ok bool) {
	f = filter{prefix: []byte(q.Prefix), since: math.MinInt64, until: math.MaxInt64, high: math.MaxUint64}
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
	f.cause = small(&t.small, q.Cause, &ok)
	f.lane = small(&t.small, q.Lane, &ok)
	f.task = number(&t.names, task.NameKey(q.Task), &ok)
	f.uid = number(&t.names, q.TaskUID, &ok)
	f.ref = number(&t.names, shortRef(q.Ref), &ok)
	if commit := strings.ToLower(q.Commit); commit != "" {
		n := min(len(commit), 16)
		f.low = digits(commit[:n])
		f.high = f.low | math.MaxUint64>>(4*n)
	}
	if q.Base != "" {
		f.terms = append(f.terms, baseTerms(q.Base))
	}
	if q.Image != "" {
		f.terms = append(f.terms, imageTerms(q.Image))
	}
	return f, ok
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

func small(w *words, s string, ok *bool) *uint8 {
	n := number(w, s, ok)
	if n == nil {
		return nil
	}
	short := uint8(*n)
	return &short
}

func baseTerms(ref string) []uint32 {
	name, repository := baseName(ref)
	if !tagged(ref) {
		name = repository
	}
	return []uint32{hash("base " + name)}
}

// tagged reports whether a reference has a tag.
func tagged(ref string) bool {
	ref, _, _ = strings.Cut(ref, "@")
	return strings.LastIndexByte(ref, ':') > strings.LastIndexByte(ref, '/')
}

func imageTerms(image string) []uint32 {
	terms := []uint32{hash("image " + image)}
	if _, rest, ok := strings.Cut(image, "/"); ok { // what it begins with may be the registry
		terms = append(terms, hash("image "+rest))
	}
	return terms
}

// match reports whether a row may be of a run that is asked for. Names are compared by their hashes.
func (f *filter) match(r *row) bool {
	switch {
	case len(f.states) > 0 && !slices.Contains(f.states, r.state),
		f.cause != nil && *f.cause != r.cause,
		f.lane != nil && *f.lane != r.lane,
		f.task != nil && *f.task != r.task,
		f.uid != nil && *f.uid != r.uid,
		f.ref != nil && *f.ref != r.ref,
		r.commit < f.low || r.commit > f.high,
		!bytes.HasPrefix(r.id[:], f.prefix):
		return false
	}
	for _, any := range f.terms {
		if !r.hasAny(any) {
			return false
		}
	}
	return true
}

// matches reports whether q selects the run of p, as far as a row cannot tell exactly.
func (q *Query) matches(p *part) bool {
	if !strings.HasPrefix(strings.ToLower(p.Cause.Commit), strings.ToLower(q.Commit)) {
		return false
	}
	return (q.Base == "" || q.hasBase(p)) && (q.Image == "" || q.hasImage(p))
}

func (q *Query) hasBase(p *part) bool {
	want, repository := baseName(q.Base)
	same := func(ref string) bool {
		name, of := baseName(ref)
		return name == want && tagged(q.Base) || of == repository && !tagged(q.Base)
	}
	return slices.ContainsFunc(p.Bases, func(b run.Base) bool { return same(b.Ref) }) ||
		slices.ContainsFunc(p.Cause.Moved, func(m run.Move) bool { return same(m.Ref) })
}

func (q *Query) hasImage(p *part) bool {
	return slices.ContainsFunc(p.Images, func(i run.Image) bool {
		for _, name := range []string{i.Repository, i.Registry + "/" + i.Repository} {
			if q.Image == name || q.Image == name+":"+i.Tag || q.Image == name+"@"+i.Digest {
				return true
			}
		}
		return false
	})
}

// A Record is a run as lists show it: in JSON, without the text of its task file.
type Record struct {
	State run.State
	JSON  json.RawMessage
}

// List returns the runs that q selects, newest first, without the text of their task files.
func (x *Index) List(ctx context.Context, q Query) ([]run.Run, error) {
	records, err := x.Records(ctx, q)
	if err != nil {
		return nil, err
	}
	list := make([]run.Run, len(records))
	for i, r := range records {
		if err := json.Unmarshal(r.JSON, &list[i]); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	return list, nil
}

// Records returns what List does as it is stored: decoding a run takes longer than finding it.
func (x *Index) Records(ctx context.Context, q Query) ([]Record, error) {
	if err := x.wait(ctx); err != nil {
		return nil, err
	}
	list, limit := []Record{}, min(max(q.Limit, 1), 1000)
	from := row{created: math.MaxInt64}
	if q.Before != "" {
		created, err := created(ctx, x.db.QueryRowContext, q.Before)
		if errors.Is(err, sql.ErrNoRows) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		from.created = created
		from.id, _ = keyOf(q.Before)
	}
	for {
		want := limit - len(list)
		found := x.scan(q, from, want)
		var err error
		if list, err = x.read(ctx, list, &q, found); err != nil || len(found) < want || len(list) == limit {
			return list, err
		}
		from = found[len(found)-1] // some were not what they seemed
	}
}

// scan returns up to limit rows before from that q may select, newest first.
func (x *Index) scan(q Query, from row, limit int) []row {
	x.mu.Lock()
	x.table.settle()
	x.mu.Unlock()
	x.mu.RLock()
	defer x.mu.RUnlock()
	f, ok := x.table.filter(q)
	if !ok {
		return nil
	}
	var found []row
	rows := x.table.rows
	end, _ := slices.BinarySearchFunc(rows, from, compareRows)
	if f.until < math.MaxInt64 {
		until, _ := slices.BinarySearchFunc(rows, row{created: f.until}, compareRows)
		end = min(end, until)
	}
	for i := end - 1; i >= 0 && rows[i].created >= f.since && len(found) < limit; i-- {
		if f.match(&rows[i]) {
			found = append(found, rows[i])
		}
	}
	return found
}

// read appends the records of rows to list that q selects.
func (x *Index) read(ctx context.Context, list []Record, q *Query, rows []row) ([]Record, error) {
	if len(rows) == 0 {
		return list, nil
	}
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].id.String()
	}
	wanted, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	// The driver watches a context that can end, which costs more than reading the records of a page.
	found, err := x.records.QueryContext(context.WithoutCancel(ctx), string(wanted))
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	defer found.Close()
	list = slices.Grow(list, len(rows))
	var stored sql.RawBytes
	var place int
	for found.Next() { // a record that was removed meanwhile is not among them
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := found.Scan(&place, &stored); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		r, ok, err := q.pick(stored)
		if err != nil {
			return nil, fmt.Errorf("index: run %s: %w", ids[place], err)
		}
		if ok {
			list = append(list, r)
		}
	}
	if err := found.Err(); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	return list, nil
}

// A part of a record tells what a row cannot tell exactly.
type part struct {
	Cause struct {
		Commit string     `json:"commit"`
		Moved  []run.Move `json:"moved"`
	} `json:"cause"`
	Bases  []run.Base  `json:"bases"`
	Images []run.Image `json:"images"`
}

// pick unpacks a stored record; ok is false if q does not select it after all.
func (q *Query) pick(stored []byte) (r Record, ok bool, err error) {
	if r.JSON, err = unpack(stored); err != nil {
		return r, false, err
	}
	r.State = stateOf(r.JSON)
	if q.Commit == "" && q.Base == "" && q.Image == "" { // a row tells all else
		return r, true, nil
	}
	var p part
	if err := json.Unmarshal(r.JSON, &p); err != nil {
		return r, false, err
	}
	return r, q.matches(&p), nil
}
