package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// MaxPayload is the largest message that kiln sends, in bytes.
const MaxPayload = 8 << 20

// A Server is a NATS server with JetStream inside this process.
type Server struct {
	ns    *server.Server
	token string
}

// ServerConfig describes an embedded server.
type ServerConfig struct {
	Dir string // where JetStream keeps its files
	// Relaxed lets JetStream acknowledge before the disk has: faster, and a power loss may take the
	// last two minutes. The default, false, syncs every message before it is acknowledged.
	Relaxed bool
	// Listen is the address at which other processes reach it, who say the token. With an empty one it opens no
	// port.
	Listen, Token string
	Log           *slog.Logger
}

// StartServer starts an embedded server and returns when it is ready. The caller shuts it down.
func StartServer(cfg ServerConfig) (*Server, error) {
	opts := &server.Options{
		ServerName:   "kiln",
		DontListen:   true,
		JetStream:    true,
		StoreDir:     cfg.Dir,
		SyncAlways:   !cfg.Relaxed,
		SyncInterval: 2 * time.Minute,
		NoSigs:       true,
		MaxPayload:   MaxPayload,
		MaxPending:   256 << 20,
		// Limits are those of the streams; the server's own must not be a guess from this machine.
		JetStreamMaxMemory: 256 << 20,
		JetStreamMaxStore:  1 << 40,
	}
	if err := cfg.listen(opts); err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("message store %s: %w", cfg.Dir, err)
	}
	ns.SetLoggerV2(serverLog{cfg.Log}, false, false, false)
	ns.Start()
	if !ns.ReadyForConnections(10*time.Second) || !ns.JetStreamEnabled() {
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, fmt.Errorf("message store %s: not ready; is the disk full or the directory not writable?", cfg.Dir)
	}
	return &Server{ns: ns, token: opts.Authorization}, nil
}

// listen has the server open a port, for who knows the token.
func (cfg ServerConfig) listen(opts *server.Options) error {
	if cfg.Listen == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return err
	}
	if opts.Port, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("port of %s: %w", cfg.Listen, err)
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if cfg.Token == "" {
		return fmt.Errorf("%s: nobody may reach the message store without a token", cfg.Listen)
	}
	opts.Host, opts.DontListen, opts.Authorization = host, false, cfg.Token
	return nil
}

// Address returns the address at which other processes reach the server, "" if there is none.
func (s *Server) Address() string {
	if a := s.ns.Addr(); a != nil {
		return a.String()
	}
	return ""
}

// Shutdown stops the server and waits until its files are closed.
func (s *Server) Shutdown() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// Connect returns a connection to the server that stays within the process.
func (s *Server) Connect(name string) (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(s.ns), nats.Token(s.token), nats.Name(name), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded message store: %w", err)
	}
	return nc, nil
}

// serverLog passes the server's warnings and errors on and drops the rest.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(string, ...any) {}
func (l serverLog) Debugf(string, ...any)  {}
func (l serverLog) Tracef(string, ...any)  {}
func (l serverLog) Warnf(format string, v ...any) {
	l.log.Warn("message store warning", "detail", fmt.Sprintf(format, v...))
}
func (l serverLog) Errorf(format string, v ...any) {
	l.log.Error("message store error", "detail", fmt.Sprintf(format, v...))
}
func (l serverLog) Fatalf(format string, v ...any) {
	l.log.Error("message store failed", "detail", fmt.Sprintf(format, v...))
}

// Transient reports whether an error of a NATS server may pass by itself.
func Transient(err error) bool {
	return errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrConnectionReconnecting)
}
