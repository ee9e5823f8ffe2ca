package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/taskspec"
	"kiln/triggers/decide"
)

// How long a request waits for its decision. That of a task may have to wait for its source.
const (
	decideWithin     = 10 * time.Second
	decideTaskWithin = 45 * time.Second
)

// maxKey is the longest idempotency key, in bytes.
const maxKey = 256

// placeholderID stands for the run ID while a request is checked.
const placeholderID = "r00000000000"

func (s *Server) submit(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.Submit
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	if len(req.Spec.Secrets) > 0 {
		return invalid("spec.secrets is set by the server; send secrets beside the spec")
	}
	if err := maySubmit(principal(r), &req.Spec); err != nil {
		return err
	}
	if err := s.checkSpec(r.Context(), req); err != nil {
		return err
	}
	sealed, err := s.seal(req.Secrets)
	if err != nil {
		return err
	}
	req.Spec.Secrets = sealed
	return s.request(w, r, event.RunRequested{Key: req.Key, Spec: req.Spec})
}

// checkSpec refuses what could never run.
func (s *Server) checkSpec(ctx context.Context, req apiclient.Submit) error {
	if (req.Spec.Build == nil) == (req.Spec.TaskFile == nil) {
		return invalid("a run needs either a build or a task file")
	}
	if req.Spec.Build != nil && req.Spec.Context == "" {
		return invalid("a build needs a context")
	}
	if len(req.Key) > maxKey {
		return invalid("key is longer than %d bytes", maxKey)
	}
	warnings, err := s.Check(run.Run{ID: placeholderID, Created: time.Now().UTC(), Spec: req.Spec, Cause: anyCause(req.Spec.Context)}, req.Secrets)
	var spec taskspec.Errors
	switch {
	case errors.As(err, &spec):
		e := invalid("the task is not valid")
		e.Problems = append(problems(spec, false), problems(warnings, true)...)
		return e
	case errors.Is(err, run.ErrLimit):
		return err
	case err != nil:
		return invalid("%s", err.Error())
	}
	if req.Spec.Context == "" {
		return nil
	}
	has, err := s.HasContext(ctx, req.Spec.Context)
	if err != nil {
		return err
	}
	if !has {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeContextMissing,
			Message: "the context has not been uploaded", Remedy: "upload it, then submit again"}
	}
	return nil
}

// request publishes the wish for a run and answers with the run that was decided.
func (s *Server) request(w http.ResponseWriter, r *http.Request, req event.RunRequested) error {
	within, identity := decideWithin, req.Key
	if req.Key == "" {
		req.Key = rand.Text()
		identity = req.Key
	}
	subject := event.DecisionSubject(event.QuickTask, req.Key)
	if req.TaskUID != "" {
		// Tasks may be given the same key: each is another request.
		within, identity = decideTaskWithin, req.TaskUID+" "+req.Key
		subject = event.DecisionSubject(req.TaskUID, decide.Track{Kind: decide.TrackRequest, Name: req.Key}.Key())
	}
	ctx, cancel := context.WithTimeout(r.Context(), within)
	defer cancel()
	req.By = principal(r).Name
	decided := make(chan struct{}, 1)
	unsubscribe, err := s.Bus.Subscribe(event.DecidedSubject(req.Key), func([]byte) {
		select {
		case decided <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer unsubscribe()
	ev, err := event.New(event.Hash(identity), "/api/v1/runs", event.TypeRunRequested, time.Now().UTC(), req)
	if err != nil {
		return err
	}
	_, err = s.Bus.Create(ctx, event.RequestSubject(identity), ev, 0)
	repeated := errors.Is(err, bus.ErrConflict)
	if err != nil && !repeated {
		return err
	}
	decision, err := s.awaitDecision(ctx, subject, decided, repeated)
	if err != nil {
		return err
	}
	if decision.Run == nil {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict, Message: "no run: " + decision.Made.Reason}
	}
	about(r, decision.Run.ID)
	if !seesRun(principal(r), *decision.Run) {
		return conflict("somebody else has used the key already; take another one")
	}
	writeJSON(w, http.StatusCreated, public(s.latest(ctx, *decision.Run)))
	return nil
}

// awaitDecision waits for the decider's hint and reads the decision; without a hint it looks by itself.
func (s *Server) awaitDecision(ctx context.Context, subject string, decided <-chan struct{}, now bool) (event.Decision, error) {
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		if !now {
			select {
			case <-decided:
			case <-look.C:
			case <-ctx.Done():
				return event.Decision{}, ctx.Err()
			}
		}
		now = false
		var d event.Decision
		_, err := s.Bus.Last(ctx, bus.StreamDecisions, subject, &d)
		if err == nil || !errors.Is(err, bus.ErrNone) {
			return d, err
		}
	}
}

// latest is the stored record of a run, or the run as it was decided while there is none yet.
func (s *Server) latest(ctx context.Context, decided run.Run) run.Run {
	if r, _, err := s.Store.Runs.Get(ctx, decided.ID); err == nil {
		return r
	}
	return decided
}

// public is a run without what no client needs.
func public(r run.Run) run.Run {
	r.Spec.Secrets = nil
	return r
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	return s.listRuns(w, r, r.URL.Query().Get("task"))
}

// listRuns lists the runs that the request selects, of a task if one is named.
func (s *Server) listRuns(w http.ResponseWriter, r *http.Request, task string) error {
	q, err := runsQuery(r.URL.Query())
	if err != nil {
		return err
	}
	q.Task = task
	if p := principal(r); p.Limited() {
		q.Of = p.SeesTask
	}
	a := listings.Get().(*listing)
	defer listings.Put(a)
	if err := s.Index.Records(r.Context(), q, &a.page); err != nil {
		return err
	}
	if err := s.explainRecords(r.Context(), a.page.Records); err != nil {
		return err
	}
	a.write(w)
	return nil
}

// A listing is what a list is put together in. It is used again, since a list that leaves garbage behind makes
// others wait while that is collected.
type listing struct {
	page index.Page
	body []byte
}

var listings = sync.Pool{New: func() any { return new(listing) }}

// maxBodyKept is the most memory in bytes that a listing keeps when it is used again.
const maxBodyKept = 256 << 10

// write answers with an apiclient.Runs.
func (a *listing) write(w http.ResponseWriter) {
	body := append(a.body[:0], `{"runs":[`...)
	for i, r := range a.page.Records {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, r.JSON...)
	}
	body = append(body, "]}\n"...)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
	if a.body = body; cap(body) > maxBodyKept {
		a.body = nil
	}
}

// explainRecords is explainQueued for records.
func (s *Server) explainRecords(ctx context.Context, records []index.Record) error {
	var queued []run.Run
	var places []int
	for i, r := range records {
		if r.State != run.Queued {
			continue
		}
		var q run.Run
		if err := json.Unmarshal(r.JSON, &q); err != nil {
			return err
		}
		queued, places = append(queued, q), append(places, i)
	}
	s.explainQueued(ctx, queued)
	for i, q := range queued {
		explained, err := json.Marshal(q)
		if err != nil {
			return err
		}
		records[places[i]].JSON = explained
	}
	return nil
}

// runsQuery reads what runs a URL asks for.
func runsQuery(v url.Values) (index.Query, error) {
	q := index.Query{Prefix: v.Get("prefix"), Before: v.Get("before"), Limit: 20, Cause: v.Get("cause"), Commit: v.Get("commit"),
		Ref: v.Get("branch"), Base: v.Get("base"), Image: v.Get("image")}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return q, invalid("limit %q: want a number from 1 to 1000", text)
		}
		q.Limit = n
	}
	for _, state := range v["status"] {
		q.States = append(q.States, run.State(state))
	}
	for name, at := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		text := v.Get(name)
		if text == "" {
			continue
		}
		var err error
		if *at, err = time.Parse(time.RFC3339, text); err != nil {
			return q, invalid("%s %q: want a time such as 2026-01-02T15:04:05Z", name, text)
		}
	}
	return q, nil
}

// find returns the run that the path names.
func (s *Server) find(r *http.Request) (run.Run, error) {
	id := r.PathValue("id")
	if !run.ValidID(id) {
		return run.Run{}, s.noRun(id)
	}
	found, _, err := s.Store.Runs.Get(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) || err == nil && !seesRun(principal(r), found) {
		return run.Run{}, s.noRun(id)
	}
	return found, err
}

// noRun says that there is no run of an ID, or none any more.
func (s *Server) noRun(id string) *apiclient.Error {
	e := &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound, Message: "no run " + strconv.Quote(id),
		Remedy: "list the runs with `kiln runs`"}
	if s.pastRetention(id) {
		e.Message = fmt.Sprintf("run %q is past retention: runs are kept for %s after their end", id, age(s.KeepRuns))
		e.Remedy = "`kiln serve --keep-runs` says how long; what is removed does not come back"
	}
	return e
}

// pastRetention reports whether a run of an ID that is not stored may have been removed for its age.
func (s *Server) pastRetention(id string) bool {
	at := run.IDTime(id)
	return s.KeepRuns > 0 && !at.IsZero() && time.Since(at) > s.KeepRuns
}

// age is a duration in words.
func age(d time.Duration) string {
	if days := d / (24 * time.Hour); days > 1 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d days", days)
	}
	return d.String()
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	shown := []run.Run{public(found)}
	s.explainQueued(r.Context(), shown)
	writeJSON(w, http.StatusOK, shown[0])
	return nil
}

// explainWithin is how long the scheduler may take to say what runs wait for.
const explainWithin = 2 * time.Second

// explainQueued replaces the stored reasons of queued runs, which have no positions, by those of now.
func (s *Server) explainQueued(ctx context.Context, runs []run.Run) {
	var ids []string
	for _, r := range runs {
		if r.State == run.Queued {
			ids = append(ids, r.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, explainWithin)
	defer cancel()
	reasons, err := s.Waiting(ctx, ids...)
	if err != nil {
		return // what is stored is said instead
	}
	for i := range runs {
		if reason := reasons[runs[i].ID]; reason != "" {
			runs[i].Reason = reason
		}
	}
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	if err := mayHandle(r, found); err != nil {
		return err
	}
	if found.State.Final() {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: "run " + found.ID + " has ended already: " + string(found.State)}
	}
	ev, err := event.New(rand.Text(), "/api/v1/runs/"+found.ID+"/cancel", event.TypeCancelRequested, time.Now().UTC(),
		event.CancelRequested{Run: found.ID, By: principal(r).Name})
	if err != nil {
		return err
	}
	ev.Subject = found.ID
	if _, err := s.Bus.Publish(r.Context(), event.CancelSubject(found.ID), ev.ID, ev); err != nil {
		return err
	}
	writeJSON(w, http.StatusAccepted, public(found))
	return nil
}

func (s *Server) rerun(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	var req apiclient.Rerun
	if r.ContentLength != 0 {
		if err := decodeBody(r, &req); err != nil {
			return err
		}
	}
	if len(req.Key) > maxKey {
		return invalid("key is longer than %d bytes", maxKey)
	}
	if found.TaskUID != "" {
		return s.rerunTask(w, r, found, req)
	}
	if err := mayRepeat(r, found); err != nil {
		return err
	}
	if req.Fresh {
		return invalid("run %s is of no task, so it has no source that could be newer; submit it again", found.ID)
	}
	if found.Spec.Context != "" {
		has, err := s.HasContext(r.Context(), found.Spec.Context)
		if err != nil {
			return err
		}
		if !has {
			return invalid("the context of run %s is no longer stored; submit it again from its directory", found.ID)
		}
	}
	if p := principal(r); p.Role != auth.RoleAdmin {
		if err := maySubmit(p, &found.Spec); err != nil { // which it has been, by who had that name then
			return err
		}
	}
	return s.request(w, r, event.RunRequested{Key: req.Key, RerunOf: found.ID, Spec: found.Spec})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	st := s.Status(r.Context())
	if principal(r).Role != auth.RoleAdmin { // how the server is made is not for all to know
		st.DataDir, st.Checks = "", []apiclient.Check{}
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

func principal(r *http.Request) auth.Principal {
	if c, ok := r.Context().Value(callerKey{}).(*caller); ok {
		return c.Principal
	}
	return auth.Principal{}
}

// decodeBody decodes a JSON body; fields that the API does not know are refused.
func decodeBody(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return invalid("request body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}
