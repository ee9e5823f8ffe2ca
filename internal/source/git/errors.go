package git

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// Conditions that a caller may branch on, with errors.Is. Anything but ErrUnavailable would be the
// same at a second attempt.
var (
	// ErrRefNotFound says that the repository has no such branch, tag or commit.
	ErrRefNotFound = errors.New("not in the repository")
	// ErrRepositoryNotFound says that there is no such repository, or none for this credential.
	ErrRepositoryNotFound = errors.New("repository not found")
	// ErrDenied says that the credential is missing, wrong or insufficient.
	ErrDenied = errors.New("access denied")
	// ErrRefused says that the address, scheme or URL is not allowed here.
	ErrRefused = errors.New("refused")
	// ErrHostKey says that an ssh server did not show a key that it is known by.
	ErrHostKey = errors.New("host key not accepted")
	// ErrTooLarge says that a limit was exceeded.
	ErrTooLarge = errors.New("too large")
	// ErrBadTree says that the repository holds what cannot be a build context.
	ErrBadTree = errors.New("unusable repository content")
	// ErrUnavailable says that the server could not be reached or broke off: try again later.
	ErrUnavailable = errors.New("git server unavailable")
)

var kinds = []error{ErrRefNotFound, ErrRepositoryNotFound, ErrDenied, ErrRefused, ErrHostKey, ErrTooLarge, ErrBadTree,
	context.Canceled, context.DeadlineExceeded}

// An Error says what could not be read from which repository. It holds no credential.
type Error struct {
	Repository string // URL without credentials
	Ref        string // may be empty
	Reason     string
	kind       error
}

func (e *Error) Error() string {
	if e.Ref == "" {
		return fmt.Sprintf("git: %s: %s", e.Repository, e.Reason)
	}
	return fmt.Sprintf("git: %s: %s: %s", e.Repository, e.Ref, e.Reason)
}

// Unwrap returns the condition. It never returns what a library reported, whose text might hold
// credentials.
func (e *Error) Unwrap() error { return e.kind }

// fail wraps err for the user. The reason is that of ctx, if it ended.
func (r remote) fail(ctx context.Context, cred Credential, ref string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	e := &Error{Repository: r.String(), Ref: ref, Reason: clip(cred.redact(err.Error()), 500), kind: ErrUnavailable}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			e.kind = kind
			break
		}
	}
	return e
}

// clip returns the first n bytes of s on one line without control characters.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

const stars = "***"

// A Credential is what a server is shown. The zero value is anonymous. It prints as stars.
type Credential struct {
	Username   string // "" with a password means any, as forges have it for tokens
	Password   string // or access token
	PrivateKey []byte // PEM, for ssh
	Passphrase string // of the key
	// KnownHosts are the accepted keys of ssh servers in the format of a known_hosts file.
	KnownHosts []byte
}

// IsZero reports whether there is no credential.
func (c Credential) IsZero() bool {
	return c.Username == "" && c.Password == "" && len(c.PrivateKey) == 0 && c.Passphrase == ""
}

// String hides the credential.
func (c Credential) String() string { return stars }

// GoString hides the credential.
func (c Credential) GoString() string { return stars }

// LogValue hides the credential.
func (c Credential) LogValue() slog.Value { return slog.StringValue(stars) }

// MarshalJSON hides the credential.
func (c Credential) MarshalJSON() ([]byte, error) { return []byte(`"` + stars + `"`), nil }

// basic returns user and password for HTTP. A lone user name is a token.
func (c Credential) basic() (user, password string) {
	switch {
	case c.Password == "":
		return "kiln", c.Username
	case c.Username == "":
		return "kiln", c.Password
	}
	return c.Username, c.Password
}

// redact replaces in s every spelling of the credential's secrets.
func (c Credential) redact(s string) string {
	user, password := c.basic()
	for _, secret := range []string{password, c.Passphrase} {
		if secret == "" {
			continue
		}
		pair := []byte(user + ":" + secret)
		for _, spelling := range []string{base64.StdEncoding.EncodeToString(pair), base64.URLEncoding.EncodeToString(pair),
			base64.StdEncoding.EncodeToString([]byte(secret)), url.QueryEscape(secret), url.PathEscape(secret), secret} {
			s = strings.ReplaceAll(s, spelling, stars)
		}
	}
	return s
}
