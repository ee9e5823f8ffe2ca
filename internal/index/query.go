package index

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"kiln/internal/run"
)

// A Query selects runs: those to which all of its fields apply that are not empty.
type Query struct {
	Prefix string // of the run ID
	Before string // a run ID: only runs older than it
	Limit  int    // at most this many; 1 to 1000

	Task    string                 // name of the task
	Of      func(task string) bool // told the key of a name: whether runs of that task are asked for; "" is none
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

// A Record is a run as lists show it: in JSON, without the text of its task file.
type Record struct {
	State run.State
	JSON  json.RawMessage
}

// A Page is where records are put. The zero Page is ready for use, and one that was used before saves memory.
type Page struct {
	Records []Record // valid until the page is used again

	buf []byte // what they are in, as far as it was large enough
}

// maxPage is the most memory in bytes that a page keeps when it is used again.
const maxPage = 256 << 10

// reset empties the page.
func (p *Page) reset() {
	if clear(p.Records); cap(p.buf) > maxPage {
		p.buf = nil
	}
	p.Records, p.buf = p.Records[:0], p.buf[:0]
}

// List returns the runs that q selects, newest first, without the text of their task files.
func (x *Index) List(ctx context.Context, q Query) ([]run.Run, error) {
	var p Page
	if err := x.Records(ctx, q, &p); err != nil {
		return nil, err
	}
	list := make([]run.Run, len(p.Records))
	for i, r := range p.Records {
		if err := json.Unmarshal(r.JSON, &list[i]); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	return list, nil
}

// Records puts what List returns into a page, as it is stored: decoding a run takes longer than finding it.
func (x *Index) Records(ctx context.Context, q Query, p *Page) error {
	p.reset()
	if err := x.wait(ctx); err != nil {
		return err
	}
	limit := min(max(q.Limit, 1), 1000)
	from := place{created: math.MaxInt64}
	if q.Before != "" {
		created, err := created(ctx, x.db.QueryRowContext, q.Before)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("index: %w", err)
		}
		from.created = created
		from.id, _ = keyOf(q.Before)
	}
	for {
		want := limit - len(p.Records)
		found := x.scan(q, from, want)
		if err := x.read(ctx, p, &q, found); err != nil || len(found) < want || len(p.Records) == limit {
			return err
		}
		from = found[len(found)-1] // some were not what they seemed
	}
}

// scan returns up to limit rows before from that q may select, newest first.
func (x *Index) scan(q Query, from place, limit int) []place {
	x.mu.RLock()
	for !x.table.settled() {
		x.mu.RUnlock()
		x.mu.Lock()
		x.table.settle()
		x.mu.Unlock()
		x.mu.RLock()
	}
	defer x.mu.RUnlock()
	f, ok := x.table.filter(q)
	if !ok {
		return nil
	}
	end, _ := x.table.find(from)
	if f.until < math.MaxInt64 {
		until, _ := x.table.find(place{created: f.until})
		end = min(end, until)
	}
	var found []place
	places := x.table.places
	for i := f.last(&x.table.columns, end); i >= 0 && places[i].created >= f.since && len(found) < limit; i = f.last(&x.table.columns, i) {
		if found == nil {
			found = make([]place, 0, min(limit, 100))
		}
		found = append(found, places[i])
	}
	return found
}

// read appends the records of rows to a page that q selects.
func (x *Index) read(ctx context.Context, p *Page, q *Query, rows []place) error {
	if len(rows) == 0 {
		return nil
	}
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].id.String()
	}
	wanted, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	// The driver watches a context that can end, which costs more than reading the records of a page.
	found, err := x.records.QueryContext(context.WithoutCancel(ctx), string(wanted))
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	defer found.Close()
	var stored sql.RawBytes
	var place int
	for found.Next() { // a record that was removed meanwhile is not among them
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := found.Scan(&place, &stored); err != nil {
			return fmt.Errorf("index: %w", err)
		}
		if err := p.add(q, stored); err != nil {
			return fmt.Errorf("index: run %s: %w", ids[place], err)
		}
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

// add appends a stored record, if q selects it after all.
func (p *Page) add(q *Query, stored []byte) error {
	begin := len(p.buf)
	var names, record []byte
	var err error
	if p.buf, names, record, err = unpack(p.buf, stored); err != nil {
		return err
	}
	if !q.exact(names) {
		p.buf = p.buf[:begin]
		return nil
	}
	p.Records = append(p.Records, Record{State: stateOf(record), JSON: record})
	return nil
}
