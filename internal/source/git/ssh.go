package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
)

const (
	handshakeTimeout = 20 * time.Second
	maxComplaint     = 2 << 10 // bytes of what the server writes to its error stream
)

// sshWire is git-upload-pack run by an ssh server.
type sshWire struct {
	client  *ssh.Client
	session *ssh.Session
	stdin   io.WriteCloser
	stdout  io.Reader
	stderr  clipped
	stop    func() bool
	once    sync.Once
}

// dialSSH starts git-upload-pack. The end of ctx ends the connection.
func (m *Mirrors) dialSSH(ctx context.Context, r remote, cred Credential) (_ *sshWire, err error) {
	cfg, err := m.sshConfig(r, cred)
	if err != nil {
		return nil, err
	}
	conn, err := m.dial(ctx, "tcp", r.address())
	if err != nil {
		return nil, err
	}
	w := &sshWire{stop: context.AfterFunc(ctx, func() { conn.Close() })}
	defer func() {
		if err != nil {
			w.stop()
			conn.Close()
			err = causeOf(ctx, err)
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	sc, chans, reqs, err := ssh.NewClientConn(conn, r.address(), cfg)
	if err != nil {
		return nil, explainSSH(err)
	}
	w.client = ssh.NewClient(sc, chans, reqs)
	if err := w.start("git-upload-pack " + shellQuote(r.path)); err != nil {
		return nil, err
	}
	return w, conn.SetDeadline(time.Time{})
}

func (w *sshWire) start(command string) (err error) {
	if w.session, err = w.client.NewSession(); err != nil {
		return err
	}
	if w.stdin, err = w.session.StdinPipe(); err != nil {
		return err
	}
	if w.stdout, err = w.session.StdoutPipe(); err != nil {
		return err
	}
	w.session.Stderr = &w.stderr
	return w.session.Start(command)
}

// explainSSH tells a wrong key from a broken connection.
func explainSSH(err error) error {
	switch {
	case knownhosts.IsHostKeyChanged(err), strings.Contains(err.Error(), "key is revoked"):
		return fmt.Errorf("%w: it is not the one of the server in known_hosts (kiln serve --ssh-known-hosts)", ErrHostKey)
	case knownhosts.IsHostUnknown(err):
		return fmt.Errorf("%w: the server is not in known_hosts; add its key to the file of kiln serve --ssh-known-hosts", ErrHostKey)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("%w: the server does not accept the ssh key", ErrDenied)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func (m *Mirrors) sshConfig(r remote, cred Credential) (*ssh.ClientConfig, error) {
	cfg := &ssh.ClientConfig{User: r.user}
	if cfg.User == "" {
		cfg.User = "git"
	}
	switch {
	case len(cred.PrivateKey) > 0:
		signer, err := parseKey(cred)
		if err != nil {
			return nil, err
		}
		cfg.Auth = []ssh.AuthMethod{ssh.PublicKeys(signer)}
	case cred.Password != "":
		cfg.Auth = []ssh.AuthMethod{ssh.Password(cred.Password)}
	default:
		return nil, fmt.Errorf("%w: ssh needs a private key: give the task one as the secret for its source, or the server with kiln serve --ssh-key %s=FILE; or use https:// with a token", ErrDenied, r.host)
	}
	hosts := cred.KnownHosts
	if len(hosts) == 0 {
		hosts = m.cfg.KnownHosts
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("%w: none is known; name a file with the keys of ssh servers with kiln serve --ssh-known-hosts", ErrHostKey)
	}
	db, err := parseKnownHosts(hosts)
	if err != nil {
		return nil, err
	}
	cfg.HostKeyCallback, cfg.HostKeyAlgorithms = db.HostKeyCallback(), db.HostKeyAlgorithms(r.address())
	return cfg, nil
}

func parseKey(cred Credential) (ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey(cred.PrivateKey)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(cred.PrivateKey, []byte(cred.Passphrase))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the ssh private key cannot be read: it is not PEM, or its passphrase is missing or wrong", ErrDenied)
	}
	return signer, nil
}

// parseKnownHosts goes through a file, which is all that the parser reads.
func parseKnownHosts(b []byte) (*knownhosts.HostKeyDB, error) {
	f, err := os.CreateTemp("", "known_hosts-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	db, err := knownhosts.NewDB(f.Name())
	if err != nil {
		return nil, fmt.Errorf("%w: known_hosts cannot be parsed", ErrHostKey)
	}
	return db, nil
}

func (w *sshWire) advertise(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(w.stdout), nil
}

func (w *sshWire) request(_ context.Context, body []byte) (io.ReadCloser, error) {
	_, err := w.stdin.Write(body)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(w.stdout), nil
}

// complaint is why the server said nothing.
func (w *sshWire) complaint() error {
	w.close()
	_ = w.session.Wait() // stderr is complete then
	text := clip(w.stderr.String(), 300)
	switch lower := strings.ToLower(text); {
	case strings.Contains(lower, "denied"), strings.Contains(lower, "not allowed"):
		return fmt.Errorf("%w: the server says %q", ErrDenied, text)
	case strings.Contains(lower, "not found"), strings.Contains(lower, "does not exist"), strings.Contains(lower, "not appear to be a git"):
		return fmt.Errorf("%w: the server says %q", ErrRepositoryNotFound, text)
	}
	return fmt.Errorf("%w: the server sent no list of refs (%q)", ErrUnavailable, text)
}

func (w *sshWire) close() {
	w.once.Do(func() {
		w.stop()
		_, _ = w.stdin.Write([]byte("0000")) // the polite end of a conversation
		w.client.Close()
	})
}

// shellQuote quotes a path for the server's shell, as git does.
func shellQuote(p string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(p) + "'"
}

// clipped keeps the first bytes written to it.
type clipped struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *clipped) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(b[:min(len(b), max(0, maxComplaint-c.buf.Len()))])
	return len(b), nil
}

func (c *clipped) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}
