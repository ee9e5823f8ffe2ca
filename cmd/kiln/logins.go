package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/worker"
)

// loginsAge is how long it may take until a changed credential of a task is used.
const loginsAge = time.Minute

// logins finds credentials for registries: among those of all tasks, then the server's own. It is safe for concurrent use.
type logins struct {
	tasks   func(ctx context.Context, visit func(store.Entry[task.Task]) bool) error
	secrets secret.Named
	shared  registryLogins
	log     *slog.Logger

	mu       sync.Mutex
	byServer map[string][]run.Login // those of the task first by name in front
	read     time.Time
}

// of implements watch.Watcher's Login: with the first credential for the host whose secrets are set.
func (l *logins) of(ctx context.Context, host string) (user, password string, err error) {
	known, err := l.known(ctx)
	if err != nil {
		return "", "", err
	}
	for _, server := range worker.LoginHosts(host) {
		for _, c := range known[server] {
			found, err := l.secrets.Resolve(ctx, &run.SecretRefs{Logins: []run.Login{c}})
			if errors.Is(err, secret.ErrUnknown) {
				l.log.Warn("a credential of a task cannot be used", "registry", host, "err", err)
				continue
			}
			if err != nil {
				return "", "", err
			}
			login := found.Logins[c.Server]
			if c.TokenSecret != "" {
				return "", login.Password, nil
			}
			return login.User, login.Password, nil
		}
	}
	login, _, err := l.shared.of(ctx, host)
	if login.User == worker.TokenUser {
		login.User = ""
	}
	return login.User, login.Password, err
}

// known returns the credentials of all tasks.
func (l *logins) known(ctx context.Context) (map[string][]run.Login, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byServer != nil && time.Since(l.read) < loginsAge {
		return l.byServer, nil
	}
	var having []task.Task
	begun := time.Now()
	err := l.tasks(ctx, func(e store.Entry[task.Task]) bool {
		if len(e.Value.Credentials) > 0 {
			having = append(having, e.Value)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(having, func(a, b task.Task) int { return cmp.Compare(a.Name, b.Name) })
	all := map[string][]run.Login{}
	for _, t := range having {
		for _, c := range t.Credentials {
			if login := run.Login(c); !slices.Contains(all[c.Server], login) {
				all[c.Server] = append(all[c.Server], login)
			}
		}
	}
	l.byServer, l.read = all, begun
	return all, nil
}
