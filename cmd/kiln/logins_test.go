package main

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/internal/task"
)

func TestLoginsOfTasks(t *testing.T) {
	t.Parallel()
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
	for host, want := range map[string]string{"one.test:5000": "ada pass", "docker.io": " token", "one.test": " ", "two.test": " "} {
		user, password, err := l.of(t.Context(), host)
		if got := fmt.Sprint(user, " ", password); err != nil || got != want {
			t.Errorf("login for %s is %q, %v, want %q", host, got, err, want)
		}
	}
	if reads != 1 {
		t.Errorf("the tasks were read %d times", reads)
	}
}
