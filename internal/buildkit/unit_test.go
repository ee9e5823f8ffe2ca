package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"kiln/internal/solve"
)

func TestRedactor(t *testing.T) {
	var r redactor
	r.add("hunter22")
	r.add("abc") // too short to be one
	for in, want := range map[string]string{
		"plain abc":              "plain abc",
		"login hunter22 refused": "login *** refused",
		`Get "https://bob:pw@host/x?token=1": no`: `Get "https://***@host/x?***": no`,
		"git https://tok@github.com/a/b.git#main": "git https://***@github.com/a/b.git#main",
		"docker-image://host/x@sha256:abc":        "docker-image://host/x@sha256:abc",
	} {
		if got := r.String(in); got != want {
			t.Errorf("String(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 100)
	for _, c := range []struct {
		step  string
		limit int
		want  string
	}{
		{"web", 64, "web.rabc"}, {"My_Step.1", 64, "My_Step.1.rabc"}, {"--", 64, "x.rabc"}, {"é", 64, "x.rabc"}, {"a b", 64, "a-b.rabc"},
		{long, maxHostname, long[:59] + ".rabc"}, {long, maxStepHostname, long + ".rabc"},
	} {
		if got := hostname(c.step, "rabc", c.limit); got != c.want {
			t.Errorf("hostname(%q, %d) = %q, want %q", c.step, c.limit, got, c.want)
		}
	}
}

func TestServicesAreRefusedWhereNobodyFindsThem(t *testing.T) {
	s := newSession(&Client{}, solve.SessionConfig{Run: "r1"})
	_, err := s.client.worker.get(t.Context(), func(context.Context) (*client.WorkerInfo, error) {
		return &client.WorkerInfo{Labels: map[string]string{networkLabel: "cni"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.place(t.Context(), solve.Container{Step: "web", Started: func() {}})
	var step *solve.StepError
	if !errors.As(err, &step) || !strings.Contains(step.Message, "(cni)") {
		t.Errorf("a service on a foreign network: %v, want that it is refused", err)
	}
	if p, err := s.place(t.Context(), solve.Container{Step: "test"}); err != nil || !strings.HasPrefix(p.hostname, "test.") {
		t.Errorf("a step on a foreign network: %+v, %v", p, err)
	}
}

func TestAddHosts(t *testing.T) {
	got, err := addHosts([]string{"a:1.2.3.4", "b=::1", "c:[fe80::1]"})
	if want := "a=1.2.3.4,b=::1,c=fe80::1"; err != nil || got != want {
		t.Errorf("addHosts = %q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"", "a", ":1.2.3.4", "a:host-gateway", "a,b:1.2.3.4"} {
		if _, err := addHosts([]string{bad}); err == nil {
			t.Errorf("addHosts(%q): no error", bad)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2"}, []string{"B=3", "C=", "C=4"})
	if diff := cmp.Diff([]string{"A=1", "B=3", "C=4"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPathInside(t *testing.T) {
	for in, want := range map[string]string{"": "", ".": "", "./a/": "a", "/a/b": "a/b", "a/../b": "b"} {
		if got, err := pathInside(in); err != nil || got != want {
			t.Errorf("pathInside(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"..", "../a", "a/../../b"} {
		if _, err := pathInside(in); err == nil {
			t.Errorf("pathInside(%q): no error", in)
		}
	}
}

func TestTreeBelow(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"app/sub", "app2"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"app/outer", "app/sub/outer2", "app2/x"} { // hard links of one file
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "app/sym")); err != nil {
		t.Fatal(err)
	}
	root, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	below := tree{fs: root, dir: "app"}
	for target, want := range map[string][]string{
		"/":   {"outer ", "sub ", "sub/outer2 outer", "sym /etc"},
		"sub": {"sub ", "sub/outer2 "},
		"no":  nil,
	} {
		var got []string
		err := below.Walk(t.Context(), target, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			stat := info.Sys().(*types.Stat)
			if stat.Path != p {
				t.Errorf("path %q, entry %q", p, stat.Path)
			}
			got = append(got, p+" "+stat.Linkname)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Walk(%q): %s", target, diff)
		}
	}
	f, err := below.Open("missing")
	if err != nil {
		t.Fatalf("Open: %v, want a file whose Read fails", err)
	}
	if _, err := f.Read(make([]byte, 1)); err == nil {
		t.Error("Read: no error")
	}
}

func TestLazyKeepsNoFailure(t *testing.T) {
	var l lazy[int]
	fail := func(context.Context) (int, error) { return 0, fs.ErrInvalid }
	if _, err := l.get(t.Context(), fail); err == nil {
		t.Error("no error")
	}
	if _, made := l.peek(); made {
		t.Error("a failure was kept")
	}
	for range 2 {
		if v, err := l.get(t.Context(), func(context.Context) (int, error) { return 1, nil }); v != 1 || err != nil {
			t.Errorf("get = %d, %v", v, err)
		}
	}
	if v, err := l.get(t.Context(), fail); v != 1 || err != nil {
		t.Errorf("get = %d, %v", v, err)
	}
}

func TestOtherSourcesThanImagesAndTheContextAreSeen(t *testing.T) {
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, c := range []struct {
		source *pb.SourceOp
		closed bool
		tagged int
	}{
		{&pb.SourceOp{Identifier: "local://context"}, true, 0},
		{&pb.SourceOp{Identifier: "docker-image://docker.io/library/node:22"}, true, 1},
		{&pb.SourceOp{Identifier: "docker-image://docker.io/library/node:22" + digest}, true, 0},
		{&pb.SourceOp{Identifier: "docker-image://docker.io/library/pinned:1"}, true, 0},
		{&pb.SourceOp{Identifier: "docker-image://host/own" + digest}, true, 0},
		{&pb.SourceOp{Identifier: "docker-image://docker.io/docker/dockerfile:1" + digest, Attrs: map[string]string{"image.recordtype": "frontend"}}, false, 0},
		{&pb.SourceOp{Identifier: "docker-image+blob://host/x" + digest}, false, 0},
		{&pb.SourceOp{Identifier: "oci-layout://host/x" + digest}, false, 0},
		{&pb.SourceOp{Identifier: "https://example.com/x"}, false, 0},
		{&pb.SourceOp{Identifier: "git://example.com/x.git"}, false, 0},
		{nil, false, 0},
	} {
		r := newBaseRecorder(solve.Build{Images: map[string]string{"docker.io/library/own:latest": "host/own" + digest},
			Pins: map[string]string{"docker.io/library/pinned:1": digest}}, solve.SessionConfig{})
		req := &policysession.CheckPolicyRequest{Source: &gatewaypb.ResolveSourceMetaResponse{Source: c.source}}
		if _, _, err := r.check(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		var got solve.Built
		if r.fill(&got); got.Closed != c.closed || len(got.Tagged) != c.tagged {
			t.Errorf("%v: closed is %t with %q by tag, want %t with %d", c.source, got.Closed, got.Tagged, c.closed, c.tagged)
		}
	}
}

func TestOnlyAllowedImagesAreUsed(t *testing.T) {
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	r := newBaseRecorder(solve.Build{Images: map[string]string{"docker.io/library/own:latest": "host/own" + digest}},
		solve.SessionConfig{Images: func(ref string) bool { return ref == "docker.io/library/node:22" }})
	for identifier, allowed := range map[string]bool{
		"local://context": true, "https://example.com/x": true, "git://example.com/x.git": true,
		"docker-image://docker.io/library/node:22": true, "docker-image://host/own" + digest: true,
		"docker-image://host/private:1": false, "docker-image://host/own:1": false,
		"docker-image+blob://host/private" + digest: false, "oci-layout://host/private" + digest: false, "new://host/private": false,
	} {
		req := &policysession.CheckPolicyRequest{Source: &gatewaypb.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: identifier}}}
		resp, _, err := r.check(t.Context(), req)
		if err != nil || (resp.Action == spb.PolicyAction_ALLOW) != allowed {
			t.Errorf("%s: %v, %v; allowed should be %t", identifier, resp, err, allowed)
		}
	}
}

func TestAddressesOfDockerfilesAreChecked(t *testing.T) {
	r := newBaseRecorder(solve.Build{}, solve.SessionConfig{Fetch: func(_ context.Context, host string) error {
		if host == "good.test" {
			return nil
		}
		return fmt.Errorf("%s is refused", host)
	}})
	git := func(remote string) *pb.SourceOp {
		return &pb.SourceOp{Identifier: "git://good.test/o/r.git", Attrs: map[string]string{pb.AttrFullRemoteURL: remote}}
	}
	for _, c := range []struct {
		source *pb.SourceOp
		want   string
	}{
		{&pb.SourceOp{Identifier: "https://good.test/x"}, ""},
		{&pb.SourceOp{Identifier: "https://good.test:8443/x"}, ""},
		{&pb.SourceOp{Identifier: "http://127.0.0.1:80/x"}, "http://127.0.0.1:80/x: 127.0.0.1 is refused"},
		{&pb.SourceOp{Identifier: "https://good.test@[::1]/x?token=sesame"}, "https://***@[::1]/x?***: ::1 is refused"},
		{&pb.SourceOp{Identifier: "http://bad host/"}, "http://bad host/: its host cannot be told"},
		{git("https://good.test/o/r.git#main"), ""},
		{git("ssh://git@good.test:22/o/r.git"), ""},
		{git("git@good.test:o/r.git"), ""},
		{git("https://localhost/o/r.git"), "https://localhost/o/r.git: localhost is refused"},
		{git("git@evil.test:o/r.git"), "git@evil.test:o/r.git: evil.test is refused"},
		{git("git://good.test/o/r.git"), "git://good.test/o/r.git: git:// is not encrypted and tells nobody apart; write https://"},
		{git("file:///etc"), "file:///etc: its host cannot be told"},
		{&pb.SourceOp{Identifier: "git://evil.test/o/r.git"}, "git://evil.test/o/r.git: git:// is not encrypted and tells nobody apart; write https://"},
	} {
		req := &policysession.CheckPolicyRequest{Source: &gatewaypb.ResolveSourceMetaResponse{Source: c.source}}
		resp, _, err := r.check(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if resp.Action != spb.PolicyAction_ALLOW {
			got = resp.DenyMessages[0].Message
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.source, got, c.want)
		}
	}
}
