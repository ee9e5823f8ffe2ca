package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBatch is how many writes share one commit, and so one sync of the disk.
	maxBatch = 64
	// trimDelay is how long delivered events may stay in the outbox when no write takes them along.
	trimDelay = time.Second
)

// A writer owns the only connection that writes. Writes that arrive while the disk is being synced
// share the next commit.
type writer struct {
	st      *statements
	jobs    chan *job
	closing chan struct{}
	done    chan struct{}
	stop    func() error

	pushed    chan struct{} // has a token after a commit that recorded events
	urgent    atomic.Bool   // some of them are not of a run, which would be followed by its end
	delivered atomic.Int64  // highest sequence of the outbox that was delivered
	trim      *time.Timer   // fires when delivered events wait to be deleted
	trimmed   int64         // highest sequence deleted; used by run only
}

// A job is one write: it succeeds or fails alone, whatever shares its commit.
type job struct {
	do   func(*tx) error
	err  error
	done chan struct{}
}

func startWriter(st *statements) *writer {
	w := &writer{
		st:      st,
		jobs:    make(chan *job),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		pushed:  make(chan struct{}, 1),
		trim:    time.NewTimer(trimDelay),
	}
	w.trim.Stop()
	w.stop = sync.OnceValue(func() error {
		close(w.closing)
		<-w.done
		w.trim.Stop()
		return st.close()
	})
	go w.run()
	return w
}

// do runs f in a transaction and returns when it is durable. The end of ctx is honoured only until
// the transaction begins: after that the outcome is what is returned.
func (w *writer) do(ctx context.Context, f func(*tx) error) error {
	j := &job{do: f, done: make(chan struct{})}
	select {
	case w.jobs <- j:
		<-j.done
		return j.err
	case <-w.closing:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *writer) run() {
	defer close(w.done)
	batch := make([]*job, 0, maxBatch)
	for {
		select {
		case j := <-w.jobs:
			batch = append(batch[:0], j)
		case <-w.trim.C:
			batch = batch[:0]
		case <-w.closing:
			_ = w.commit(nil) // only trims: what stays is delivered again under the same ID
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-w.jobs:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		w.settle(batch, w.commit(batch))
	}
}

// settle tells the jobs of a batch how they ended. An error of the commit is everybody's.
func (w *writer) settle(batch []*job, err error) {
	for _, j := range batch {
		if err != nil && j.err == nil {
			j.err = diskError(err)
		}
		close(j.done)
	}
}

// commit runs the jobs in one transaction. A job that fails is undone alone and has its err set.
func (w *writer) commit(batch []*job) error {
	trim := w.delivered.Load()
	if len(batch) == 0 && trim == w.trimmed {
		return nil
	}
	t := &tx{st: w.st, now: time.Now().UTC()}
	if err := t.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	err := w.runJobs(t, batch, trim)
	if err == nil {
		err = t.exec(`COMMIT`)
	}
	if err != nil {
		// SQLite may have ended the transaction by itself; then there is nothing to undo.
		_ = t.exec(`ROLLBACK`)
		return err
	}
	w.trimmed = trim
	if t.urgent {
		w.urgent.Store(true)
	}
	if t.events {
		select {
		case w.pushed <- struct{}{}:
		default: // the relay has not yet seen the last token
		}
	}
	return nil
}

func (w *writer) runJobs(t *tx, batch []*job, trim int64) error {
	if trim > w.trimmed {
		if err := t.exec(`DELETE FROM outbox WHERE seq <= ?`, trim); err != nil {
			return err
		}
	}
	for _, j := range batch {
		if err := t.exec(`SAVEPOINT job`); err != nil {
			return err
		}
		if err := j.do(t); err != nil {
			j.err = diskError(err)
			if err := t.exec(`ROLLBACK TO job`); err != nil {
				return errors.Join(j.err, err)
			}
		}
		if err := t.exec(`RELEASE job`); err != nil {
			return err
		}
	}
	return nil
}

// setDelivered notes that the events up to seq were delivered. They are deleted with the next
// commit; if none comes soon, by one of their own.
func (w *writer) setDelivered(seq int64) {
	w.delivered.Store(seq)
	w.trim.Reset(trimDelay)
}

// A tx is the transaction that a job runs in. It is valid until the job returns.
type tx struct {
	st     *statements
	now    time.Time
	events bool // some event was recorded
	urgent bool // one that is not of a run
}

func (t *tx) millis() int64 { return t.now.UnixMilli() }

func (t *tx) exec(query string, args ...any) error {
	_, err := t.result(query, args...)
	return err
}

// insert returns the row ID of the row that query inserts.
func (t *tx) insert(query string, args ...any) (int64, error) {
	r, err := t.result(query, args...)
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}

// change returns how many rows query changed.
func (t *tx) change(query string, args ...any) (int64, error) {
	r, err := t.result(query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *tx) result(query string, args ...any) (sql.Result, error) {
	s, err := t.st.get(query)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return s.Exec(args...)
}

// row reads one row into dest and reports whether there is one.
func (t *tx) row(query string, args []any, dest ...any) (bool, error) {
	s, err := t.st.get(query)
	if err != nil {
		return false, fmt.Errorf("prepare: %w", err)
	}
	err = s.QueryRow(args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// strings reads a column of text.
func (t *tx) strings(query string, args ...any) ([]string, error) {
	s, err := t.st.get(query)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	rows, err := s.Query(args...)
	if err != nil {
		return nil, err
	}
	return collectStrings(rows)
}

// integers reads a column of integers.
func (t *tx) integers(query string, args ...any) ([]int64, error) {
	s, err := t.st.get(query)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	rows, err := s.Query(args...)
	if err != nil {
		return nil, err
	}
	return collectIntegers(rows)
}

func collectIntegers(rows *sql.Rows) (out []int64, err error) {
	err = each(rows, func() error {
		var v int64
		err := rows.Scan(&v)
		out = append(out, v)
		return err
	})
	return out, err
}

func collectStrings(rows *sql.Rows) (_ []string, err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// row reads one row outside of a transaction into dest and reports whether there is one.
func (s *Store) row(ctx context.Context, query string, args []any, dest ...any) (bool, error) {
	q, err := s.read.get(query)
	if err != nil {
		return false, s.readError(err)
	}
	err = q.QueryRowContext(ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, s.readError(err)
}

// rows runs a query outside of a transaction. The caller closes the rows.
func (s *Store) rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	q, err := s.read.get(query)
	if err != nil {
		return nil, s.readError(err)
	}
	r, err := q.QueryContext(ctx, args...)
	return r, s.readError(err)
}

// readError names the reason of a read that failed because the store was closed.
func (s *Store) readError(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-s.closed:
		return errors.Join(ErrClosed, err)
	default:
		return err
	}
}
