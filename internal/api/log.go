package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
)

const (
	recordWithin = 10 * time.Second // how long a follower waits for the record of a run just decided
	logWithin    = 5 * time.Second  // how long a follower waits for more of an ended run's log
	keepAlive    = 15 * time.Second
	// followAfter is when a run that has not begun is watched: it begins first.
	followAfter = 10 * time.Millisecond
)

// log streams a run's log and state as server-sent events.
func (s *Server) log(w http.ResponseWriter, r *http.Request) error {
	follow := r.URL.Query().Get("follow") == "1"
	var after uint64
	if v := r.Header.Get("Last-Event-ID"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return invalid("Last-Event-ID %q: want a number", v)
		}
		after = n
	}
	found, err := s.find(r)
	if id := r.PathValue("id"); err != nil && follow && run.ValidID(id) && !s.pastRetention(id) {
		found, err = s.awaitRecord(r.Context(), id)
	}
	if err == nil && !seesRun(principal(r), found) {
		err = s.noRun(found.ID)
	}
	if err != nil {
		return err
	}
	st := newStream(w)
	if follow && !found.State.Final() {
		err = s.follow(r.Context(), st, found, after)
	} else {
		err = s.replay(r.Context(), st, found, after)
	}
	if err != nil && r.Context().Err() == nil {
		s.Log.Warn("log stream ended early", "run", found.ID, "err", err)
	}
	return nil
}

// awaitRecord waits for the record of a run that has just been decided.
func (s *Server) awaitRecord(ctx context.Context, id string) (run.Run, error) {
	ctx, cancel := context.WithTimeout(ctx, recordWithin)
	defer cancel()
	var found *run.Run
	err := s.Store.Runs.Watch(ctx, id, func(e *store.Entry[run.Run]) bool {
		if e != nil && !e.Gone {
			found = &e.Value
		}
		return found == nil
	})
	if err == nil && found == nil {
		err = s.noRun(id)
	}
	if err != nil {
		return run.Run{}, err
	}
	return *found, nil
}

// replay sends what is stored.
func (s *Server) replay(ctx context.Context, st *stream, r run.Run, after uint64) error {
	if err := st.run(r); err != nil {
		return err
	}
	err := s.Bus.Tail(ctx, bus.StreamLogs, event.LogFilter(r.ID), after, false, func(seq uint64, data []byte) bool {
		return st.log(seq, data) == nil
	})
	return errors.Join(err, st.run(r), st.end())
}

// A logMessage is one message of the log on its way to a follower.
type logMessage struct {
	seq  uint64
	data []byte
}

// follow sends the log as it grows and the run as it changes, until the run has ended and its log is
// complete.
func (s *Server) follow(ctx context.Context, st *stream, r run.Run, after uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	logs, states, failed := make(chan logMessage, 64), make(chan run.Run, 16), make(chan error, 2)
	begun := make(chan struct{})
	if r.State == run.Running {
		close(begun)
	} else {
		time.AfterFunc(followAfter, func() { close(begun) })
	}
	go func() {
		<-begun
		failed <- s.Bus.Tail(ctx, bus.StreamLogs, event.LogFilter(r.ID), after, true, func(seq uint64, data []byte) bool {
			return offer(ctx, logs, logMessage{seq, data})
		})
	}()
	go func() {
		<-begun
		failed <- s.Store.Runs.Watch(ctx, r.ID, func(e *store.Entry[run.Run]) bool {
			return e == nil || e.Gone || offer(ctx, states, e.Value)
		})
	}()
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	var patience <-chan time.Time // set when the run has ended and its log is not complete
	var err error
	for err == nil {
		if r.State.Final() && after >= r.LogEnd {
			return errors.Join(st.run(r), st.end())
		}
		select {
		case m := <-logs:
			after = m.seq
			err = st.log(m.seq, m.data)
			if patience != nil { // a follower may be behind by much: only silence ends it
				patience = time.After(logWithin)
			}
		case r = <-states:
			if r.State.Final() {
				patience = time.After(logWithin)
			} else {
				err = st.run(r)
			}
		case <-patience:
			return errors.Join(st.run(r), st.end())
		case <-alive.C:
			err = st.comment()
		case err = <-failed:
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = errors.New("stream of the log has ended")
			}
		}
	}
	return err
}

func offer[T any](ctx context.Context, c chan<- T, v T) bool {
	select {
	case c <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

// A stream writes server-sent events.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return &stream{w: w, rc: http.NewResponseController(w)}
}

func (s *stream) log(seq uint64, data []byte) error {
	if _, err := fmt.Fprintf(s.w, "id: %d\nevent: %s\ndata: %s\n\n", seq, apiclient.StreamLog, data); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *stream) run(r run.Run) error {
	data, err := json.Marshal(public(r))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", apiclient.StreamRun, data); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *stream) end() error {
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: {}\n\n", apiclient.StreamEnd); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *stream) comment() error {
	if _, err := fmt.Fprint(s.w, ": alive\n\n"); err != nil {
		return err
	}
	return s.rc.Flush()
}
