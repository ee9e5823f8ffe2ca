package git

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/gittest"
)

func TestPrivateRepository(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "ci", "s3cr3t/token+")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	good := Credential{Username: "ci", Password: "s3cr3t/token+"}
	if s := mustOpen(t, m, Ref{URL: url}, good); s.Commit.ID != commit {
		t.Errorf("commit = %s", s.Commit.ID)
	}
	inURL := strings.Replace(url, "http://", "http://ci:s3cr3t%2Ftoken+@", 1)
	if s := mustOpen(t, m, Ref{URL: inURL}, Credential{}); s.URL != url {
		t.Errorf("URL = %s", s.URL)
	}
	// The mirror has the commit; who may not read the repository must not get it from there.
	for name, cred := range map[string]Credential{"none": {}, "wrong": {Username: "ci", Password: "wr0ng-p4ss"}, "token": {Username: "wr0ng-p4ss"}} {
		_, err := m.Open(t.Context(), Ref{URL: url, Commit: commit}, cred)
		if !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v, want %v", name, err, ErrDenied)
			continue
		}
		for _, secret := range []string{"wr0ng-p4ss", "Y2k6", "a2lsbjp"} {
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, cred), secret) {
				t.Errorf("%s: %v holds the credential", name, err)
			}
		}
	}
	assertNotOnDisk(t, m.cfg.Dir, "s3cr3t")
}

func assertNotOnDisk(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if strings.Contains(string(b), secret) {
			t.Errorf("%s holds the credential", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAddressesAreRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	gittest.NewRepo(t, root, "r.git").Commit("x")
	srv := gittest.Serve(t, root, "", "")
	cfg := loopback(t)
	cfg.Allow = nil
	strict := open(t, cfg)
	_, port, _ := strings.Cut(srv.Host, ":")
	for _, url := range []string{srv.URL + "/r.git", "http://localhost:" + port + "/r.git", "http://[::1]:" + port + "/r.git",
		"http://[::ffff:127.0.0.1]:" + port + "/r.git", "http://0.0.0.0:" + port + "/r.git", "http://169.254.169.254/latest/r.git",
		"http://10.0.0.1/r.git", "http://100.64.0.1/r.git", "http://[fe80::1]/r.git", "http://[64:ff9b::7f00:1]/r.git"} {
		if _, err := strict.LsRemote(t.Context(), url, Credential{}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", url, err, ErrRefused)
		}
	}
	if n := srv.Requests(); n > 0 {
		t.Errorf("the server had %d requests", n)
	}
	ssh := Ref{URL: "ssh://git@127.0.0.1:" + port + "/r.git"}
	known := gittest.ServeSSH(t, root)
	if _, err := strict.Open(t.Context(), ssh, Credential{PrivateKey: known.PrivateKey, KnownHosts: known.KnownHosts}); !errors.Is(err, ErrRefused) {
		t.Errorf("ssh: %v", err)
	}
	cfg = loopback(t)
	cfg.PlainHTTP = nil
	if _, err := open(t, cfg).LsRemote(t.Context(), srv.URL+"/r.git", Credential{}); !errors.Is(err, ErrRefused) {
		t.Errorf("plain HTTP: %v", err)
	}
	for _, url := range []string{"file:///etc", "/etc", "./x", "git://example.com/r.git", "ext::sh -c x", "ssh://-oProxyCommand=x/r",
		"git@host:-x", "https://host", "https://h/a/../../b.git", "https://h\\x/r.git", "https:///r.git"} {
		if _, err := strict.Open(t.Context(), Ref{URL: url}, Credential{}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", url, err, ErrRefused)
		}
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Commit("x")
	public := gittest.Serve(t, root, "", "")
	private := gittest.Serve(t, root, "ci", "pw")
	m := open(t, loopback(t))
	moved := gittest.Redirect(t, public.URL)
	if s := mustOpen(t, m, Ref{URL: moved + "/r.git"}, Credential{}); s.Commit.ID != commit {
		t.Errorf("commit = %s", s.Commit.ID)
	}
	stolen := gittest.Redirect(t, private.URL)
	if _, err := m.Open(t.Context(), Ref{URL: stolen + "/r.git"}, Credential{Username: "ci", Password: "pw"}); !errors.Is(err, ErrDenied) {
		t.Errorf("the credential went to another origin: %v", err)
	}
	cfg := loopback(t)
	port := netip.MustParseAddrPort(strings.TrimPrefix(public.URL, "http://")).Port()
	cfg.Allow = func(host string, addr netip.Addr) bool { return host == "localhost" && addr.IsLoopback() }
	inside := gittest.Redirect(t, fmt.Sprintf("http://127.0.0.1:%d", port))
	_, err := open(t, cfg).LsRemote(t.Context(), strings.Replace(inside, "127.0.0.1", "localhost", 1)+"/r.git", Credential{})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("redirect to a refused address: %v", err)
	}
}

func TestSSH(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	first := repo.Sample()
	srv, other := gittest.ServeSSH(t, root), gittest.ServeSSH(t, root)
	m := open(t, loopback(t))
	url := "ssh://git@" + srv.Addr + "/r.git"
	good := Credential{PrivateKey: srv.PrivateKey, KnownHosts: srv.KnownHosts}
	s := mustOpen(t, m, Ref{URL: url}, good)
	if diff := cmp.Diff(repo.Archive(first), files(t, s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	repo.Write("a.txt", "2", 0)
	second := repo.Commit("second")
	repo.Write("a.txt", "3", 0)
	third := repo.Commit("third")
	if s := mustOpen(t, m, Ref{URL: url}, good); s.Commit.ID != third || files(t, s)["a.txt"] != "f3" {
		t.Error("third commit not read")
	}
	// No ref names the second: the server does not give it out alone, its history does.
	if s := mustOpen(t, m, Ref{URL: url, Commit: second}, good); files(t, s)["a.txt"] != "f2" {
		t.Error("second commit not read")
	}
	for name, tt := range map[string]struct {
		url  string
		cred Credential
		want error
	}{
		"no key":        {url, Credential{KnownHosts: srv.KnownHosts}, ErrDenied},
		"wrong key":     {url, Credential{PrivateKey: other.PrivateKey, KnownHosts: srv.KnownHosts}, ErrDenied},
		"no host key":   {url, Credential{PrivateKey: srv.PrivateKey}, ErrHostKey},
		"unknown host":  {url, Credential{PrivateKey: srv.PrivateKey, KnownHosts: other.KnownHosts}, ErrHostKey},
		"not a key":     {url, Credential{PrivateKey: []byte("x"), KnownHosts: srv.KnownHosts}, ErrDenied},
		"no repository": {"ssh://git@" + srv.Addr + "/none.git", good, ErrRepositoryNotFound},
	} {
		if _, err := m.Open(t.Context(), Ref{URL: tt.url}, tt.cred); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}
