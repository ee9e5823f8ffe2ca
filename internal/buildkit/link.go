package buildkit

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peerTimeout is after what silence a daemon is taken for dead: a machine that vanished does not
// close its connections.
const peerTimeout = 30 * time.Second

// A link dials the daemon and knows whether the connection is up. gRPC always reads from it, so that
// its end is noticed at once, whatever is being executed.
type link struct {
	network, address string

	mu   sync.Mutex
	conn *watchedConn // nil or the latest
	err  error        // of the latest attempt to dial
}

// newLink returns a link to the daemon at u.
func newLink(u *url.URL) (*link, error) {
	switch {
	case u.Scheme == "unix" && u.Path != "":
		return &link{network: "unix", address: u.Path}, nil
	case u.Scheme == "tcp" && u.Port() != "":
		return &link{network: "tcp", address: u.Host}, nil
	}
	return nil, errors.New("want unix:///path or tcp://host:port")
}

func (l *link) dial(ctx context.Context, _ string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: peerTimeout / 2, Interval: peerTimeout / 6, Count: 3}}
	if l.network == "tcp" {
		d.Control = limitUnacknowledged
	}
	c, err := d.DialContext(ctx, l.network, l.address)

	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	if err != nil {
		return nil, err
	}
	l.conn = &watchedConn{Conn: c, lost: make(chan struct{})}
	return l.conn, nil
}

// alive reports whether there is a connection.
func (l *link) alive() bool {
	select {
	case <-l.lost():
		return false
	default:
		return true
	}
}

// lost returns a channel that is closed when the present connection ends. Without a connection it
// is closed already.
func (l *link) lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return closed
	}
	return l.conn.lost
}

func (l *link) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// limitUnacknowledged makes a connection fail when the peer does not acknowledge what was sent.
func limitUnacknowledged(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}

// A watchedConn closes lost when it can no longer be read or is closed.
type watchedConn struct {
	net.Conn
	once sync.Once
	lost chan struct{}
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.lost) })
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.lost) })
	return c.Conn.Close()
}
