package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/worker"
)

func TestLoginsOfTasksAndOfTheServer(t *testing.T) {
	id, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{"p": "pass", "t": "token"}
	reads := 0
	l := &logins{log: slog.New(slog.DiscardHandler),
		secrets: secret.Named{Identity: id, Record: func(_ context.Context, name string) (event.Secret, error) {
			if set[name] == "" {
				return event.Secret{}, secret.ErrUnknown
			}
			sealed, err := secret.Seal(id.Recipient(), set[name])
			return event.Secret{Sealed: sealed}, err
		}},
		tasks: func(_ context.Context, visit func(store.Entry[task.Task]) bool) error {
			reads++
			for _, x := range []task.Task{
				{Name: "b", Credentials: []task.Credential{{Server: "one.test:5000", Username: "ada", PasswordSecret: "p"}}},
				{Name: "a", Credentials: []task.Credential{{Server: "index.docker.io", TokenSecret: "t"}, {Server: "one.test:5000", Username: "bob", PasswordSecret: "unset"}}},
				{Name: "c", Credentials: []task.Credential{{Server: "two.test", TokenSecret: "unset"}}},
			} {
				visit(store.Entry[task.Task]{Value: x})
			}
			return nil
		}}
	t.Setenv("SHARED_PW", "of-all")
	l.shared = registryLogins{secrets: l.secrets, log: l.log, list: []registryLogin{{"one.test:5000", "all", "env", "SHARED_PW"},
		{"shared.test", "all", "env", "SHARED_PW"}, {"stored.test", worker.TokenUser, "store", "t"}, {"unset.test", "all", "store", "unset"},
		{"none.test", "all", "file", filepath.Join(t.TempDir(), "none")}}}
	for host, want := range map[string]string{"one.test:5000": "ada pass", "shared.test": "all of-all", "stored.test": " token", "unset.test": " ", "none.test": " ", "docker.io": " token", "one.test": " ", "two.test": " "} {
		user, password, err := l.of(t.Context(), host)
		if got := fmt.Sprint(user, " ", password); err != nil || got != want {
			t.Errorf("login for %s is %q, %v, want %q", host, got, err, want)
		}
	}
	if reads != 1 {
		t.Errorf("the tasks were read %d times", reads)
	}
}

func TestRegistryLoginsOfTheCommandLine(t *testing.T) {
	t.Parallel()
	for entry, ok := range map[string]bool{"reg.test:5000=ada:env:PW": true, "reg.test=ada:file:/etc/pw": true, "docker.io=<token>:store:hub": true,
		"reg.test=ada:pass-word": false, "reg.test=ada": false, "reg.test": false, "=ada:env:PW": false, "https://reg.test=ada:env:PW": false, "reg.test=:env:PW": false, "reg.test=ada:env:": false} {
		if _, err := parseRegistryLogin(entry); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "pass-word") {
			t.Errorf("%s: %v", entry, err)
		}
	}
}
