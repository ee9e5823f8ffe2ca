// Package index answers lists of runs from SQLite.
//
// It is a projection of the run records in JetStream, which hold the truth: it follows them, may lag
// by milliseconds, and can be deleted at any time; the next start builds it again.
package index

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"modernc.org/sqlite" // also the database driver
	sqlite3 "modernc.org/sqlite/lib"

	"kiln/internal/run"
	"kiln/internal/store"
)

// schema is versioned by user_version: another version in the file has it rebuilt.
const (
	schemaVersion = 1
	schema        = `
CREATE TABLE runs (id TEXT PRIMARY KEY, status TEXT NOT NULL, final INTEGER NOT NULL, task TEXT NOT NULL,
	created INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX runs_created ON runs (created DESC, id DESC);
CREATE INDEX runs_open ON runs (final) WHERE final = 0;
CREATE TABLE position (revision INTEGER NOT NULL);
INSERT INTO position VALUES (0);`
)

// An Index is the projection. It is safe for concurrent use.
type Index struct {
	db    *sql.DB
	file  string
	log   *slog.Logger
	ready chan struct{} // closed when the present state has been read
	once  sync.Once
}

// Open opens the index in file, or makes an empty one when there is none that can be used. The caller
// closes it.
func Open(file string, log *slog.Logger) (*Index, error) {
	db, err := open(file)
	if err != nil {
		log.Warn("index is rebuilt", "err", err)
		if err := remove(file); err != nil {
			return nil, err
		}
		if db, err = open(file); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	return &Index{db: db, file: file, log: log, ready: make(chan struct{})}, nil
}

func open(file string) (*sql.DB, error) {
	pragmas := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(5000)", "cache_size(-2000)"}}
	db, err := sql.Open("sqlite", "file:"+file+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(2)
	var version int
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
	}
	switch version {
	case schemaVersion:
		return db, nil
	case 0:
		_, err := db.Exec(schema + fmt.Sprintf("PRAGMA user_version = %d", schemaVersion))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
		}
		return db, nil
	}
	return nil, errors.Join(fmt.Errorf("%s: schema version %d, want %d", file, version, schemaVersion), db.Close())
}

// Close closes the index.
func (x *Index) Close() error { return x.db.Close() }

// Run follows the run records until ctx is done. It returns nil then.
func (x *Index) Run(ctx context.Context, runs *store.Bucket[run.Run]) error {
	var from uint64
	if err := x.db.QueryRowContext(ctx, "SELECT revision FROM position").Scan(&from); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return x.damaged(err)
	}
	var opts []jetstream.WatchOpt
	if from > 0 {
		opts = append(opts, jetstream.ResumeFromRevision(from+1))
	}
	var batch []*store.Entry[run.Run]
	caughtUp := false
	var failed error
	err := runs.Watch(ctx, ">", func(e *store.Entry[run.Run]) bool {
		if e != nil {
			batch = append(batch, e)
		}
		if e == nil || caughtUp || len(batch) >= 500 {
			failed = x.apply(ctx, batch)
			batch = batch[:0]
		}
		if e == nil {
			caughtUp = true
			x.once.Do(func() { close(x.ready) })
		}
		return failed == nil
	}, opts...)
	if err := errors.Join(err, failed); err != nil && ctx.Err() == nil {
		return x.damaged(err)
	}
	return nil
}

// damaged removes an index whose pages cannot be read: it holds nothing that is not elsewhere.
func (x *Index) damaged(err error) error {
	var fault *sqlite.Error
	if !errors.As(err, &fault) || fault.Code()&0xff != sqlite3.SQLITE_CORRUPT {
		return fmt.Errorf("index: %w", err)
	}
	return errors.Join(fmt.Errorf("index: damaged, and removed; start the server again to have it rebuilt: %w", err), remove(x.file))
}

// remove deletes the files of an index.
func remove(file string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("index: %w", err)
		}
	}
	return nil
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
	for _, e := range entries {
		if e.Gone {
			_, err = tx.ExecContext(ctx, "DELETE FROM runs WHERE id = ?", e.Key)
		} else {
			err = insert(ctx, tx, e.Value)
		}
		if err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "UPDATE position SET revision = ?", entries[len(entries)-1].Revision); err != nil {
		return err
	}
	return tx.Commit()
}

func insert(ctx context.Context, tx *sql.Tx, r run.Run) error {
	record, err := json.Marshal(summary(r))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)",
		r.ID, string(r.State), r.State.Final(), r.Task, r.Created.UnixNano(), record)
	return err
}

// summary leaves out of a record what no list shows.
func summary(r run.Run) run.Run {
	r.Spec.Secrets = nil
	if r.Spec.TaskFile != nil {
		t := *r.Spec.TaskFile
		t.Content, t.Values, t.Set = nil, nil, nil
		r.Spec.TaskFile = &t
	}
	return r
}

// wait blocks until the index has read the state that was stored when it started.
func (x *Index) wait(ctx context.Context) error {
	select {
	case <-x.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Active returns the IDs of the runs that have not ended.
func (x *Index) Active(ctx context.Context) ([]string, error) {
	if err := x.wait(ctx); err != nil {
		return nil, err
	}
	rows, err := x.db.QueryContext(ctx, "SELECT id FROM runs WHERE final = 0 ORDER BY created, id")
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// A Query selects runs.
type Query struct {
	Prefix string // of the run ID
	Before string // a run ID: only runs older than it
	Limit  int    // at most this many; 1 to 1000
}

// List returns the runs that q selects, newest first, without the text of their task files.
func (x *Index) List(ctx context.Context, q Query) ([]run.Run, error) {
	if err := x.wait(ctx); err != nil {
		return nil, err
	}
	rows, err := x.db.QueryContext(ctx, `SELECT record FROM runs WHERE id >= ? AND id < ? AND (? = '' OR (created, id) <
		(SELECT created, id FROM runs WHERE id = ?)) ORDER BY created DESC, id DESC LIMIT ?`,
		q.Prefix, q.Prefix+"~", q.Before, q.Before, min(max(q.Limit, 1), 1000))
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	defer rows.Close()
	list := []run.Run{}
	for rows.Next() {
		var record []byte
		var r run.Run
		if err := rows.Scan(&record); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		if err := json.Unmarshal(record, &r); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		list = append(list, r)
	}
	return list, rows.Err()
}
