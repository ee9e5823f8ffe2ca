package notify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"kiln/internal/event"
	"kiln/internal/forge"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// queueStatus queues the status of a run's commit, if the run is about one: a base image or the time of
// day says nothing about a commit.
func (n *Notifier) queueStatus(ctx context.Context, r run.Run, e event.Event) error {
	about := r.Cause.Kind == run.CauseCommit || r.Cause.Kind == run.CausePull || r.Cause.Kind == run.CauseManual || r.Cause.Kind == run.CauseRerun
	if !about || r.Task == "" || r.Cause.Commit == "" || r.Cause.Repository == "" {
		return nil
	}
	host := forge.Host(r.Cause.Repository)
	w := event.Notification{Run: r.ID, Host: host}
	return n.queue(ctx, event.StatusSubject(host), w, e.ID)
}

// sendStatus sets the status of the commit that a run is about, as the run is now.
func (n *Notifier) sendStatus(ctx context.Context, id string) error {
	r, _, err := n.Store.Runs.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	at := n.forgeOf(r)
	if at.Provider == "" {
		return nil
	}
	if at.Token, err = n.tokenOf(ctx, r, at.Token); err != nil || at.Token == "" {
		return err
	}
	at.HTTP = n.forge
	repo, err := forge.Open(at)
	if err != nil {
		return fmt.Errorf("%w: %w", errFinal, err)
	}
	for {
		said := n.statusOf(r)
		if err := repo.SetStatus(ctx, r.Cause.Commit, said); forge.Permanent(err) {
			return fmt.Errorf("%w: %w", errFinal, err)
		} else if err != nil {
			return unreached{err}
		}
		// Another status may have been sent meanwhile, and have arrived before this one.
		if r, _, err = n.Store.Runs.Get(ctx, id); err != nil || n.statusOf(r) == said {
			return err
		}
	}
}

// forgeOf finds out which forge a run's repository is at. Its token is the name of a secret.
func (n *Notifier) forgeOf(r run.Run) forge.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return forge.Locate(r.Cause.Repository, maps.Values(n.hooks), n.Forges)
}

// tokenOf returns the token for a run's repository: that of the task's context, else that of the hook.
// The task is asked because runs of strangers carry no secrets.
func (n *Notifier) tokenOf(ctx context.Context, r run.Run, ofHook string) (string, error) {
	name := ""
	if r.Spec.Refs != nil {
		name = r.Spec.Refs.Context
	}
	if name == "" {
		t, _, err := n.Store.Tasks.Get(ctx, store.TaskKey(r.Task))
		switch {
		case err == nil && t.UID == r.TaskUID:
			name = t.ContextSecret
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return "", err
		}
	}
	if name == "" {
		name = ofHook
	}
	if name == "" {
		return "", nil
	}
	token, err := n.Secret(ctx, name)
	if errors.Is(err, secret.ErrUnknown) || errors.Is(err, store.ErrNotFound) {
		return "", fmt.Errorf("%w: there is no secret %q", errFinal, name)
	}
	return strings.TrimSpace(token), err
}

// statusOf is what a run says of its commit.
func (n *Notifier) statusOf(r run.Run) forge.Status {
	s := forge.Status{State: forge.Pending, Context: "kiln/" + r.Task}
	if n.RunURL != nil {
		s.URL = n.RunURL(r.ID)
	}
	switch r.State {
	case run.Succeeded:
		s.State, s.Description = forge.Success, "run "+r.ID+" succeeded"
	case run.Failed:
		s.State, s.Description = forge.Failure, "run "+r.ID+" failed"
	case run.Timeout:
		s.State, s.Description = forge.Failure, "run "+r.ID+" took too long"
	case run.Canceled:
		s.State, s.Description = forge.Broken, "run "+r.ID+" was canceled"
	case run.Error:
		s.State, s.Description = forge.Broken, "run "+r.ID+" could not be executed"
	case run.Started, run.Running:
		s.Description = "run " + r.ID + " is being executed"
	default:
		s.Description = "run " + r.ID + " is queued"
		if r.NeedsApproval && r.ApprovedBy == "" {
			s.Description = "run " + r.ID + " waits for approval"
		}
	}
	if r.Reason != "" && r.State.Final() && r.State != run.Succeeded {
		s.Description += ": " + r.Reason
	}
	return s
}
