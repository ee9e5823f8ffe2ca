// Package index answers lists of runs.
//
// It is a projection of the run records in JetStream, which hold the truth: it follows them, may lag
// by milliseconds, and can be deleted at any time; the next start builds it again. Shortened records are
// kept in SQLite. What runs are selected by is held in memory too, about 110 bytes for each run, so that
// a list takes about the same time whatever it asks for.
package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"modernc.org/sqlite" // also the database driver
	sqlite3 "modernc.org/sqlite/lib"

	"kiln/internal/run"
	"kiln/internal/store"
)

// schema is versioned by user_version: another version in the file has it rebuilt.
const (
	schemaVersion = 3
	schema        = `
CREATE TABLE runs (id TEXT PRIMARY KEY, created INTEGER NOT NULL, final INTEGER NOT NULL, facets TEXT NOT NULL,
	terms BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX runs_open ON runs (created, id) WHERE final = 0;
CREATE TABLE records (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE position (revision INTEGER NOT NULL);
INSERT INTO position VALUES (0);`
)

// An Index is the projection. It is safe for concurrent use.
type Index struct {
	db      *sql.DB
	records *sql.Stmt // reads those of a list of IDs, in its order
	insert  [2]*sql.Stmt
	file    string
	log     *slog.Logger
	ready   chan struct{} // closed when the present state has been read
	once    sync.Once

	// While the index is built anew, which takes a while, the runs that have not ended are known first.
	surveyed chan struct{} // closed when they are
	open     []string

	applied atomic.Uint64 // revision up to which the table holds everything

	mu    sync.RWMutex
	table table
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
	x := &Index{db: db, file: file, log: log, ready: make(chan struct{}), surveyed: make(chan struct{})}
	for stmt, text := range map[**sql.Stmt]string{
		&x.records:   "SELECT wanted.key, record FROM json_each(?) AS wanted CROSS JOIN records ON records.id = wanted.value ORDER BY wanted.key",
		&x.insert[0]: "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)",
		&x.insert[1]: "INSERT OR REPLACE INTO records VALUES (?, ?)",
	} {
		if *stmt, err = db.Prepare(text); err != nil {
			return nil, errors.Join(fmt.Errorf("index: %s: %w", file, err), db.Close())
		}
	}
	return x, nil
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

// Position returns the revision of the last record that the index has read.
func (x *Index) Position() uint64 { return x.applied.Load() }

// Close closes the index.
func (x *Index) Close() error {
	return errors.Join(x.records.Close(), x.insert[0].Close(), x.insert[1].Close(), x.db.Close())
}

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
	var err error
	x.applied.Store(from)
	if from > 0 {
		err = x.load(ctx)
		opts = append(opts, jetstream.ResumeFromRevision(from+1))
	} else {
		err = x.survey(ctx, runs)
	}
	if err == nil {
		err = x.follow(ctx, runs, opts)
	}
	if err != nil && ctx.Err() == nil {
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

// wait blocks until the index has read the state that was stored when it started.
func (x *Index) wait(ctx context.Context) error {
	select {
	case <-x.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Active returns the IDs of the runs that have not ended, oldest first. When the index is built anew it
// does not wait for that.
func (x *Index) Active(ctx context.Context) ([]string, error) {
	select {
	case <-x.ready:
	case <-x.surveyed:
		if !x.caughtUp() {
			return slices.Clone(x.open), nil
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.table.settle()
	var ids []string
	for i, k := range x.table.kinds {
		if !k.final {
			ids = append(ids, x.table.places[i].id.String())
		}
	}
	return ids, nil
}

// Reach waits until what Active tells includes the record of a revision, unless the index is built anew.
func (x *Index) Reach(ctx context.Context, revision uint64) error {
	if !x.caughtUp() {
		return nil
	}
	again := time.NewTicker(reachEvery)
	defer again.Stop()
	for x.applied.Load() < revision {
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

const reachEvery = 10 * time.Millisecond

func (x *Index) caughtUp() bool {
	select {
	case <-x.ready:
		return true
	default:
		return false
	}
}
