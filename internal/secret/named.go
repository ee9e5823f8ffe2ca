package secret

import (
	"context"
	"fmt"

	"kiln/internal/event"
	"kiln/internal/run"
)

// ErrUnknown is returned for a secret that nobody has set.
var ErrUnknown = fmt.Errorf("the secret is not set")

// A Named is the set of secrets that have a name. It is safe for concurrent use if its record source is.
type Named struct {
	// Record returns the sealed secret of a name, and an error that wraps ErrUnknown if there is none.
	Record   func(ctx context.Context, name string) (event.Secret, error)
	Identity Identity // that they are sealed to
}

// Value returns the value of a secret. Its errors name the secret and never hold its value.
func (n Named) Value(ctx context.Context, name string) (string, error) {
	rec, err := n.Record(ctx, name)
	if err != nil {
		return "", fmt.Errorf("secret %q: %w; set it with `kiln secret set %s`", name, err, name)
	}
	var value string
	if err := n.Identity.Open(rec.Sealed, &value); err != nil {
		return "", fmt.Errorf("secret %q cannot be opened with this server's key: %w; set it again", name, err)
	}
	return value, nil
}

// Resolve returns the values of all secrets that refs name. It blocks on the store.
func (n Named) Resolve(ctx context.Context, refs *run.SecretRefs) (event.Secrets, error) {
	var out event.Secrets
	if refs == nil {
		return out, nil
	}
	var err error
	if refs.Context != "" {
		if out.Context, err = n.Value(ctx, refs.Context); err != nil {
			return out, err
		}
	}
	if out.Set, err = n.values(ctx, refs.Set); err != nil {
		return out, err
	}
	if out.Args, err = n.values(ctx, refs.Args); err != nil {
		return out, err
	}
	for _, l := range refs.Logins {
		login, err := n.login(ctx, l)
		if err != nil {
			return out, fmt.Errorf("credential for %s: %w", l.Server, err)
		}
		if out.Logins == nil {
			out.Logins = map[string]event.Login{}
		}
		out.Logins[l.Server] = login
	}
	return out, nil
}

func (n Named) values(ctx context.Context, refs map[string]string) (map[string]string, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(refs))
	for key, name := range refs {
		value, err := n.Value(ctx, name)
		if err != nil {
			return nil, err
		}
		out[key] = value
	}
	return out, nil
}

// identityUser is the user name that goes with an identity token instead of a password.
const identityUser = "<token>"

func (n Named) login(ctx context.Context, l run.Login) (event.Login, error) {
	if l.TokenSecret != "" {
		token, err := n.Value(ctx, l.TokenSecret)
		return event.Login{User: identityUser, Password: token}, err
	}
	login := event.Login{User: l.Username}
	var err error
	if l.UsernameSecret != "" {
		if login.User, err = n.Value(ctx, l.UsernameSecret); err != nil {
			return login, err
		}
	}
	login.Password, err = n.Value(ctx, l.PasswordSecret)
	return login, err
}
