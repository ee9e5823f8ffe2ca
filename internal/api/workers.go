package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/run"
	"kiln/internal/store"
)

func (s *Server) listWorkers(w http.ResponseWriter, r *http.Request) error {
	list, err := s.workers(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, apiclient.Workers{Workers: list})
	return nil
}

// workers returns those that are registered, and the drained names, with what each has in hand.
func (s *Server) workers(ctx context.Context) ([]apiclient.Worker, error) {
	inHand, err := s.inHand(ctx)
	if err != nil {
		return nil, err
	}
	drains := map[string]event.Drain{}
	err = s.Store.Drains.List(ctx, func(e store.Entry[event.Drain]) bool { drains[e.Value.Worker] = e.Value; return true })
	if err != nil {
		return nil, err
	}
	list := []apiclient.Worker{}
	err = s.Store.Workers.List(ctx, func(e store.Entry[event.Worker]) bool {
		w := e.Value
		list = append(list, apiclient.Worker{Name: w.Name, Pool: cmp.Or(w.Pool, "default"), Parallel: w.Parallel, Platforms: w.Platforms,
			BuildKit: w.BuildKit, Address: w.Address, Version: w.Version, Host: w.Host, Started: w.Started, Reason: w.Unfit})
		return true
	})
	if err != nil {
		return nil, err
	}
	for name := range drains {
		if !slices.ContainsFunc(list, func(w apiclient.Worker) bool { return w.Name == name }) {
			list = append(list, apiclient.Worker{Name: name, State: apiclient.WorkerGone})
		}
	}
	for i := range list {
		w := &list[i]
		w.Runs = append([]string{}, inHand[w.Name]...)
		if d, ok := drains[w.Name]; ok {
			w.Reason = fmt.Sprintf("drained by %s at %s", cmp.Or(d.By, "an administrator"), d.Since.Format(time.RFC3339))
			w.State = cmp.Or(w.State, apiclient.WorkerDrained)
			if len(w.Runs) > 0 {
				w.State = apiclient.WorkerDraining
			}
		} else if w.Reason != "" {
			w.State = apiclient.WorkerUnfit
		}
		w.State = cmp.Or(w.State, apiclient.WorkerReady)
	}
	slices.SortFunc(list, func(a, b apiclient.Worker) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// inHand returns the runs that workers execute, by their names.
func (s *Server) inHand(ctx context.Context) (map[string][]string, error) {
	runs, err := s.Index.List(ctx, index.Query{States: []run.State{run.Started, run.Running}, Limit: 1000})
	if err != nil {
		return nil, err
	}
	held := map[string][]string{}
	for _, r := range runs {
		if n := len(r.Attempts); n > 0 && r.Attempts[n-1].Outcome == "" {
			held[r.Attempts[n-1].Worker] = append(held[r.Attempts[n-1].Worker], r.ID)
		}
	}
	return held, nil
}

func (s *Server) drainWorker(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("worker")
	now, err := s.knownWorker(r.Context(), name)
	if err != nil {
		return err
	}
	if now.State != apiclient.WorkerDrained && now.State != apiclient.WorkerDraining && now.State != apiclient.WorkerGone {
		d := event.Drain{Worker: name, By: principal(r).Name, Since: time.Now().UTC()}
		if _, err := s.Store.Drains.Put(r.Context(), event.Hash(name), d); err != nil {
			return err
		}
	}
	if now, err = s.knownWorker(r.Context(), name); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, now)
	return nil
}

func (s *Server) undrainWorker(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("worker")
	if _, err := s.knownWorker(r.Context(), name); err != nil {
		return err
	}
	if err := s.Store.Drains.Delete(r.Context(), event.Hash(name)); err != nil {
		return err
	}
	found, err := s.knownWorker(r.Context(), name)
	if err != nil {
		found = apiclient.Worker{Name: name, State: apiclient.WorkerGone, Runs: []string{}}
	}
	writeJSON(w, http.StatusOK, found)
	return nil
}

// knownWorker returns the worker of a name.
func (s *Server) knownWorker(ctx context.Context, name string) (apiclient.Worker, error) {
	list, err := s.workers(ctx)
	if err != nil {
		return apiclient.Worker{}, err
	}
	i := slices.IndexFunc(list, func(w apiclient.Worker) bool { return w.Name == name })
	if i < 0 {
		return apiclient.Worker{}, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("no worker %q is registered", name), Remedy: "kiln worker list"}
	}
	return list[i], nil
}
