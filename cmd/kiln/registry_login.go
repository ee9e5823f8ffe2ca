package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/worker"
)

// A registryLogin is how the server itself signs in to a registry. The password is where its operator says.
type registryLogin struct {
	host, user string
	kind, what string // of the password's source
}

// parseRegistryLogin reads HOST=USER:SOURCE.
func parseRegistryLogin(entry string) (registryLogin, error) {
	host, rest, _ := strings.Cut(entry, "=")
	user, source, _ := strings.Cut(rest, ":")
	kind, what, _ := strings.Cut(source, ":")
	l := registryLogin{strings.ToLower(host), user, kind, what}
	known := kind == "env" || kind == "file" || kind == "store"
	if host == "" || strings.ContainsAny(host, "/@ ") || user == "" || !known || what == "" {
		// What is wrong may be a password, so it is not repeated.
		return l, fmt.Errorf("--registry-login for %q: want HOST=USER:env:VARIABLE, HOST=USER:file:PATH or HOST=USER:store:SECRET", host)
	}
	return l, nil
}

// registryLogins are the logins that all trusted runs share. It is safe for concurrent use.
type registryLogins struct {
	list    []registryLogin
	secrets secret.Named
	log     *slog.Logger
}

// registryLogins returns those of the server's configuration, which is validated.
func (n *node) registryLogins() registryLogins {
	all := registryLogins{secrets: n.secrets(), log: n.log}
	for _, entry := range n.cfg.steps.logins {
		l, _ := parseRegistryLogin(entry)
		all.list = append(all.list, l)
	}
	return all
}

// of returns the login for a registry; there may be none.
func (r registryLogins) of(ctx context.Context, host string) (event.Login, bool, error) {
	for _, l := range r.list {
		for _, name := range worker.LoginHosts(host) {
			if l.host != name {
				continue
			}
			password, err := r.password(ctx, l)
			if errors.Is(err, secret.ErrUnknown) {
				r.log.Warn("a login of --registry-login cannot be used", "registry", l.host, "err", err)
				return event.Login{}, false, nil
			}
			return event.Login{User: l.user, Password: password}, err == nil, err
		}
	}
	return event.Login{}, false, nil
}

// maxPassword bounds the file of a password, in bytes.
const maxPassword = 64 << 10

// password reads the password of a login, each time anew: it may have been changed.
func (r registryLogins) password(ctx context.Context, l registryLogin) (string, error) {
	switch l.kind {
	case "env":
		value := os.Getenv(l.what)
		if value == "" {
			return "", fmt.Errorf("%w: the server has no environment variable %s", secret.ErrUnknown, l.what)
		}
		return value, nil
	case "store":
		return r.secrets.Value(ctx, l.what)
	}
	f, err := os.Open(l.what)
	if err != nil {
		return "", fmt.Errorf("%w: %w", secret.ErrUnknown, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", secret.ErrUnknown, err)
	case len(b) == 0, len(b) > maxPassword:
		return "", fmt.Errorf("%w: %s is empty, or larger than %d bytes", secret.ErrUnknown, l.what, maxPassword)
	}
	return secret.SingleLine(string(b)), nil
}

// resolve returns the secrets of a run, and with them the server's own logins for the registries that the task
// names none for. A run of a stranger's code gets none of these.
func (n *node) resolve(ctx context.Context, r run.Run) (event.Secrets, error) {
	values, err := n.secrets().Resolve(ctx, r.Spec.Refs)
	if err != nil || r.Spec.Restricted {
		return values, err
	}
	own := n.registryLogins()
	for _, l := range own.list {
		if hasLogin(values.Logins, l.host) {
			continue
		}
		login, ok, err := own.of(ctx, l.host)
		if err != nil {
			return values, err
		}
		if ok && values.Logins == nil {
			values.Logins = map[string]event.Login{}
		}
		if ok {
			values.Logins[l.host] = login
		}
	}
	return values, nil
}

// hasLogin reports whether there is a login for a registry, under any of its names.
func hasLogin(logins map[string]event.Login, host string) bool {
	for _, name := range worker.LoginHosts(host) {
		if _, ok := logins[name]; ok {
			return true
		}
	}
	return false
}
