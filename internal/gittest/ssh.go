package gittest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// An SSHServer serves the repositories below a directory over ssh.
type SSHServer struct {
	Addr       string // 127.0.0.1:port
	PrivateKey []byte // PEM of the only key that may log in, as any user
	KnownHosts []byte

	root  string
	cfg   *ssh.ServerConfig
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns []net.Conn
}

// ServeSSH starts a server of the directory. A repository's path is relative to it.
func ServeSSH(t testing.TB, root string) *SSHServer {
	t.Helper()
	_, host := newKey(t)
	private, user := newKey(t)
	s := &SSHServer{root: root, PrivateKey: private}
	s.cfg = &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	s.cfg.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(s.Addr)
	s.KnownHosts = fmt.Appendf(nil, "[127.0.0.1]:%s %s", port, ssh.MarshalAuthorizedKey(host.PublicKey()))
	s.wg.Go(func() { s.accept(l) })
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func newKey(t testing.TB) ([]byte, ssh.Signer) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), signer
}

func (s *SSHServer) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.wg.Go(func() { s.connection(c) })
	}
}

func (s *SSHServer) connection(c net.Conn) {
	defer c.Close()
	_, chans, reqs, err := ssh.NewServerConn(c, s.cfg)
	if err != nil {
		return
	}
	s.wg.Go(func() { ssh.DiscardRequests(reqs) })
	for nc := range chans {
		if nc.ChannelType() != "session" {
			_ = nc.Reject(ssh.UnknownChannelType, "")
			continue
		}
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() { s.session(ch, reqs) })
	}
}

func (s *SSHServer) session(ch ssh.Channel, reqs <-chan *ssh.Request) {
	for req := range reqs {
		var exec struct{ Command string }
		if req.Type != "exec" || ssh.Unmarshal(req.Payload, &exec) != nil {
			_ = req.Reply(false, nil)
			continue
		}
		_ = req.Reply(true, nil)
		s.wg.Go(func() {
			code := s.run(exec.Command, ch)
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
			ch.Close()
		})
	}
}

func (s *SSHServer) run(command string, ch ssh.Channel) uint32 {
	name, ok := strings.CutPrefix(command, "git-upload-pack '")
	if !ok {
		fmt.Fprintln(ch.Stderr(), "command not allowed")
		return 1
	}
	cmd := exec.Command("git", "upload-pack", filepath.Join(s.root, filepath.Clean("/"+strings.TrimSuffix(name, "'"))))
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(), ch, ch.Stderr()
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return 1
	}
	s.wg.Go(func() {
		_, _ = io.Copy(in, ch)
		in.Close()
	})
	if cmd.Wait() != nil {
		return 128
	}
	return 0
}
