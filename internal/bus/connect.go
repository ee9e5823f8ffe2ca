package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// reachWithin is how long Connect tries to reach a server that may be starting, too.
	reachWithin = 30 * time.Second
	// minServer is the oldest NATS server that has what kiln needs: messages on a schedule, and streams that
	// acknowledge before they write.
	minServerMajor, minServerMinor = 2, 12
	maxTokenFile                   = 4 << 10
)

// A Conn is a connection to NATS servers.
type Conn = nats.Conn

// A Remote says how to reach the NATS servers of others.
type Remote struct {
	// URLs are nats://host:port or tls://host:port, of any servers of one cluster, without credentials. With
	// nats://user@host:port the token file has the user's password, and what is said to the user comes by subjects
	// below _INBOX.<user>, of which others know nothing.
	URLs      []string
	CredsFile string // of a user, as nsc makes it; "" for none
	TokenFile string // a token, or the password of the user of URLs; "" for none
	CAFile    string // who signs the servers' certificates; "" for whom the system trusts
}

// Validate reports what is wrong with the addresses.
func (r Remote) Validate() error {
	var errs []error
	for _, s := range r.URLs {
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls":
			errs = append(errs, fmt.Errorf("%q: want nats://HOST:PORT or tls://HOST:PORT", redactURL(s)))
		case credentialsIn(u) || u.User != nil && r.TokenFile == "": // which a name without a password may be
			errs = append(errs, fmt.Errorf("%q: credentials do not belong in an address, which others can read: name a file with them", redactURL(s)))
		case u.User.Username() != r.user():
			errs = append(errs, fmt.Errorf("%q: the servers of one cluster are reached as one user", redactURL(s)))
		}
	}
	return errors.Join(errs...)
}

// validUser is a user's name that may be part of a subject.
var validUser = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// credentialsIn reports whether an address has more than the name of a user.
func credentialsIn(u *url.URL) bool {
	_, password := u.User.Password()
	return password || u.User != nil && !validUser.MatchString(u.User.Username())
}

// user returns the user in the first address, "" if there is none.
func (r Remote) user() string {
	for _, s := range r.URLs {
		if u, err := url.Parse(s); err == nil {
			return u.User.Username()
		}
	}
	return ""
}

// servers returns the addresses without the user.
func (r Remote) servers() string {
	var out []string
	for _, s := range r.URLs {
		out = append(out, strings.Replace(s, "://"+r.user()+"@", "://", 1))
	}
	return strings.Join(out, ",")
}

// redactURL is s without what may be a password.
func redactURL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if at := strings.LastIndexByte(rest, '@'); ok && at >= 0 {
		return scheme + "://***" + rest[at:]
	}
	return s
}

func (r Remote) options(log *slog.Logger) ([]nats.Option, error) {
	opts := []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("message store lost, trying again", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Warn("message store is back", "url", nc.ConnectedUrlRedacted()) }),
	}
	if r.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(r.CredsFile))
	}
	if r.TokenFile != "" {
		token, err := readToken(r.TokenFile)
		if err != nil {
			return nil, err
		}
		if user := r.user(); user != "" {
			opts = append(opts, nats.UserInfo(user, token), nats.CustomInboxPrefix("_INBOX."+user))
		} else {
			opts = append(opts, nats.Token(token))
		}
	}
	if r.CAFile != "" {
		opts = append(opts, nats.RootCAs(r.CAFile))
	}
	return opts, nil
}

// readToken reads a token from the first line of a file.
func readToken(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if fi.Size() > maxTokenFile {
		return "", fmt.Errorf("%s: %d bytes is too much for a token", path, fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token, _, _ := strings.Cut(string(b), "\n")
	if token = strings.TrimSpace(token); token == "" {
		return "", fmt.Errorf("%s: has no token in its first line", path)
	}
	return token, nil
}

// Connect returns a connection to one of the servers, which comes back by itself when it is lost. It tries
// for half a minute to reach one, and refuses one that lacks what kiln needs. The caller closes the connection.
func Connect(ctx context.Context, r Remote, name string, log *slog.Logger) (*Conn, error) {
	opts, err := r.options(log)
	if err != nil {
		return nil, err
	}
	opts = append(opts, nats.Name(name))
	where := r.servers()
	var nc *nats.Conn
	err = retry(ctx, func() (err error) {
		nc, err = nats.Connect(where, opts...)
		return err
	}, func(err error) bool { return !errors.Is(err, nats.ErrAuthorization) && !errors.Is(err, os.ErrNotExist) })
	if err == nil {
		if err = suits(nc); err != nil {
			nc.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("message store %s: %w", where, err)
	}
	return nc, nil
}

// Patiently calls f until it returns nil or an error that does not pass by itself, for half a minute at most:
// the servers may be starting, too.
func Patiently(ctx context.Context, f func() error) error {
	return retry(ctx, f, func(err error) bool {
		return Transient(err) || errors.Is(err, jetstream.ErrNoStreamResponse) || hasCode(err, codeUnavailable, codeNoPeers, codeNoResources)
	})
}

// retry calls f until it returns nil or an error that will not pass, until ctx ends or half a minute is over.
func retry(ctx context.Context, f func() error, passes func(error) bool) error {
	for end := time.Now().Add(reachWithin); ; {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(end) || !passes(err) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// suits reports what a server lacks.
func suits(nc *nats.Conn) error {
	var major, minor int
	if _, err := fmt.Sscanf(nc.ConnectedServerVersion(), "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("version %q: %w", nc.ConnectedServerVersion(), err)
	}
	if major < minServerMajor || major == minServerMajor && minor < minServerMinor {
		return fmt.Errorf("NATS server %s is too old: %d.%d or later is needed", nc.ConnectedServerVersion(), minServerMajor, minServerMinor)
	}
	if nc.MaxPayload() < MaxPayload {
		return fmt.Errorf("takes messages of %d bytes at most, %d are needed: set max_payload: %dMB in the server's configuration", nc.MaxPayload(), MaxPayload, MaxPayload>>20)
	}
	return nil
}
