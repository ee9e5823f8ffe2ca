package index

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"kiln/internal/run"
	"kiln/internal/store"
)

// many is how many records take so long to be indexed that nobody should wait for it who wants to know
// only which runs have not ended.
const many = 1000

// survey finds the runs that have not ended in a store that has not been read yet.
func (x *Index) survey(ctx context.Context, runs *store.Bucket[run.Run]) error {
	open := map[string]time.Time{}
	read := 0
	var failed error
	err := runs.Scan(ctx, func(id string, data []byte) {
		read++
		if ended(data) {
			return
		}
		var r run.Run
		if err := json.Unmarshal(data, &r); err != nil {
			failed = fmt.Errorf("run %s: stored record: %w", id, err)
		} else if !r.State.Final() {
			open[id] = r.Created
		}
	})
	if err := errors.Join(err, failed); err != nil || read < many {
		return err
	}
	x.open = slices.SortedFunc(maps.Keys(open), func(a, b string) int {
		return cmp.Or(open[a].Compare(open[b]), strings.Compare(a, b))
	})
	close(x.surveyed)
	return nil
}

// ended reports whether a stored record is seen at first sight to be of a run that has ended.
func ended(data []byte) bool { return stateOf(data).Final() }

// stateOf returns the state in a stored record. The first status in it is the run's, and no text can look
// like it, for its quotes would be escaped.
func stateOf(data []byte) run.State {
	const field = `"status":"`
	i := bytes.Index(data, []byte(field))
	if i < 0 {
		return ""
	}
	state, _, _ := bytes.Cut(data[i+len(field):], []byte(`"`))
	return run.State(state)
}

// load fills the table with what is stored.
func (x *Index) load(ctx context.Context) error {
	rows, err := x.db.QueryContext(ctx, "SELECT id, created, final, facets, terms FROM runs")
	if err != nil {
		return err
	}
	defer rows.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	var id, packed string
	var created int64
	var final bool
	var terms sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&id, &created, &final, &packed, &terms); err != nil {
			return err
		}
		k, _ := keyOf(id)
		f, err := unpackFacets(packed, terms)
		if err != nil {
			return fmt.Errorf("run %s: %w", id, err)
		}
		x.table.put(x.table.row(place{created, k}, final, f))
	}
	x.table.settle()
	return rows.Err()
}

const (
	maxEntries = 1000 // records that are stored at once
	maxAhead   = 64   // that are read and wait for that meanwhile
)

// lag is how long a change waits for others to be stored with it. Whoever waits for the run's new state
// itself comes first.
const lag = 15 * time.Millisecond

// follow reads the records as they are and as they change, and stores them in batches.
func (x *Index) follow(ctx context.Context, runs *store.Bucket[run.Run], opts []jetstream.WatchOpt) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	entries, stored := make(chan *store.Entry[run.Run], maxAhead), make(chan error, 1)
	go func() {
		defer cancel()
		stored <- x.collect(ctx, entries)
	}()
	err := runs.Watch(ctx, ">", func(e *store.Entry[run.Run]) bool {
		select {
		case entries <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}, opts...)
	close(entries)
	return errors.Join(err, <-stored)
}

// collect stores what comes until entries is closed. A nil entry says that the present state is complete.
func (x *Index) collect(ctx context.Context, entries <-chan *store.Entry[run.Run]) error {
	batch := make([]*store.Entry[run.Run], 0, few)
	caughtUp := false
	var due <-chan time.Time // set while a batch waits for more
	for open := true; open; {
		full := false
		select {
		case e, ok := <-entries:
			switch {
			case !ok:
				open = false
			case e == nil:
				caughtUp, full = true, true
			default:
				batch = append(batch, e)
				full = len(batch) >= maxEntries
				if caughtUp && due == nil {
					due = time.After(lag)
				}
			}
		case <-due:
			full = true
		}
		if !full {
			continue
		}
		if err := x.applyWithRoom(ctx, batch); err != nil {
			return err
		}
		clear(batch)
		batch, due = batch[:0], nil
		if caughtUp {
			x.once.Do(func() { close(x.ready) })
		}
	}
	return nil
}

// roomAgain is how often a disk without room is tried.
const roomAgain = time.Second

// applyWithRoom is apply that waits while the disk is full: there is no need to end for that what lists come from.
func (x *Index) applyWithRoom(ctx context.Context, entries []*store.Entry[run.Run]) error {
	for said := false; ; said = true {
		err := x.apply(ctx, entries)
		if !isFull(err) {
			return err
		}
		if !said {
			x.log.Warn("the disk is full: lists of runs stay as they are until there is room", "file", x.file, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(roomAgain):
		}
	}
}

func isFull(err error) bool {
	var fault *sqlite.Error
	return errors.As(err, &fault) && fault.Code()&0xff == sqlite3.SQLITE_FULL
}

// apply stores entries and the position behind them in one transaction.
func (x *Index) apply(ctx context.Context, entries []*store.Entry[run.Run]) error {
	if len(entries) == 0 {
		return nil
	}
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	changed := make([]row, 0, len(entries))
	for _, e := range entries {
		r, err := x.write(ctx, tx, e)
		if errors.Is(err, sql.ErrNoRows) { // a run that was never here is gone
			continue
		}
		if err != nil {
			return fmt.Errorf("run %s: %w", e.Key, err)
		}
		changed = append(changed, r)
	}
	if _, err := tx.ExecContext(ctx, "UPDATE position SET revision = ?", entries[len(entries)-1].Revision); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range changed {
		x.table.put(r)
	}
	if len(entries) <= few || len(x.table.fresh) > len(x.table.places)/2 {
		x.table.settle()
	}
	x.applied.Store(entries[len(entries)-1].Revision)
	return nil
}

// write stores an entry and returns its row.
func (x *Index) write(ctx context.Context, tx *sql.Tx, e *store.Entry[run.Run]) (row, error) {
	k, ok := keyOf(e.Key)
	if !ok {
		return row{}, fmt.Errorf("a run ID of more than %d bytes", maxID)
	}
	if e.Gone {
		at, err := created(ctx, tx.QueryRowContext, e.Key)
		if err == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM runs WHERE id = ?", e.Key)
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM records WHERE id = ?", e.Key)
		}
		return row{place: place{at, k}, gone: true}, err
	}
	f, at, final := facetsOf(e.Value), nanos(e.Value.Created), e.Value.State.Final()
	record, err := pack(e.Value, f.names)
	if err != nil {
		return row{}, err
	}
	packed, terms := packFacets(f)
	if _, err = tx.StmtContext(ctx, x.insert[0]).ExecContext(ctx, e.Key, at, final, packed, terms); err != nil {
		return row{}, err
	}
	if _, err = tx.StmtContext(ctx, x.insert[1]).ExecContext(ctx, e.Key, record); err != nil {
		return row{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.table.row(place{at, k}, final, f), nil
}

// created returns when a run was created, or sql.ErrNoRows.
func created(ctx context.Context, ask func(context.Context, string, ...any) *sql.Row, id string) (int64, error) {
	var at int64
	err := ask(ctx, "SELECT created FROM runs WHERE id = ?", id).Scan(&at)
	return at, err
}
