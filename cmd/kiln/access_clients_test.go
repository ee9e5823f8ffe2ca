package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/auth"
	"kiln/internal/event"
)

func TestTokensExpire(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.push(t, "team/app:1")
	now := time.Now()
	grants := []event.Grant{{Repository: "team/*", Permissions: event.Permissions()}}
	password, record := auth.NewToken(event.Token{Name: "short", Grants: grants, Expires: now.Add(time.Minute)})
	_, err := g.store.Tokens.Create(t.Context(), auth.TokenKey("short"), record)
	must(t, err)
	session, _ := g.session(t, password, "repository:team/app:pull")
	for _, token := range []string{password, session} {
		if _, err := g.keys.Verify(t.Context(), token, now.Add(50*time.Second)); err != nil {
			t.Errorf("before its end: %v", err)
		}
		if p, err := g.keys.Verify(t.Context(), token, now.Add(61*time.Second)); !errors.Is(err, auth.ErrToken) {
			t.Errorf("after its end: %+v, %v", p, err)
		}
	}
	lasting := g.token(t, "lasting", "--repo", "team/*=pull")
	session, _ = g.session(t, lasting, "repository:team/app:pull")
	if _, err := g.keys.Verify(t.Context(), session, now.Add(time.Hour)); !errors.Is(err, auth.ErrToken) {
		t.Errorf("a session after an hour: %v", err)
	}
	if _, err := g.keys.Verify(t.Context(), lasting, now.Add(10_000*time.Hour)); err != nil {
		t.Errorf("a token that does not expire: %v", err)
	}
	old, record := auth.NewToken(event.Token{Name: "old", Grants: grants, Expires: now.Add(-time.Second)})
	_, err = g.store.Tokens.Create(t.Context(), auth.TokenKey("old"), record)
	must(t, err)
	if status, code, _ := g.do(t, "Bearer "+old, "GET", "/v2/team/app/manifests/1"); status != 401 || code != "UNAUTHORIZED" {
		t.Errorf("an expired token: %d %s", status, code)
	}
}

func TestAnonymousPull(t *testing.T) {
	t.Parallel()
	g := newGate(t, "public", "half*")
	for _, image := range []string{"public:1", "public/app:1", "publicity:1", "half/a:1", "private/app:1", "kiln/staging/app:1"} {
		g.push(t, image)
	}
	nobody := remote.WithAuth(authn.Anonymous)
	for image, want := range map[string]int{"public:1": 0, "public/app:1": 0, "half/a:1": 0, "publicity:1": 401, "private/app:1": 401, "kiln/staging/app:1": 401} {
		if _, err := remote.Image(g.ref(t, image), nobody); refusedWith(err) != want {
			t.Errorf("pull %s: %v, want %d", image, err, want)
		}
		repository, tag, _ := strings.Cut(image, ":")
		if status, _, _ := g.do(t, "", "GET", "/v2/"+repository+"/manifests/"+tag); status != max(want, 200) {
			t.Errorf("GET %s: %d", image, status)
		}
	}
	img, err := random.Image(10, 1)
	must(t, err)
	if err := remote.Write(g.ref(t, "public/app:2"), img, nobody); refusedWith(err) != 401 {
		t.Errorf("anonymous push: %v", err)
	}
	if err := remote.Delete(g.ref(t, "public/app:1"), nobody); refusedWith(err) != 401 {
		t.Errorf("anonymous delete: %v", err)
	}
	reg, err := name.NewRegistry(g.host())
	must(t, err)
	catalog := func(o remote.Option) []string {
		list, err := remote.Catalog(t.Context(), reg, o)
		must(t, err)
		return list
	}
	if got := catalog(nobody); !slices.Equal(got, []string{"half/a", "public", "public/app"}) {
		t.Errorf("anonymous catalog: %v", got)
	}
	if got := catalog(user(g.token(t, "t", "--repo", "private/*=pull"))); !slices.Equal(got, []string{"private/app"}) {
		t.Errorf("a token's catalog: %v", got)
	}
	if got := catalog(user(g.admin)); len(got) != 5 {
		t.Errorf("the administrator's catalog: %v", got)
	}
	if list, err := remote.List(g.ref(t, "public/app").Context(), nobody); err != nil || !slices.Equal(list, []string{"1"}) {
		t.Errorf("anonymous tags: %v, %v", list, err)
	}
	// Docker asks this first, and shows its token only if it is refused.
	if status, _, _ := g.do(t, "", "GET", "/v2/"); status != 401 {
		t.Errorf("GET /v2/: %d", status)
	}
	if status, _, _ := g.do(t, "Basic d3Jvbmc6d3Jvbmc=", "GET", "/v2/public/app/manifests/1"); status != 401 {
		t.Errorf("a wrong password for what is public: %d", status)
	}
}

func TestRunsReadWhatTheyShould(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	for _, image := range []string{"team/app:1", "team/base:1", "kiln/contexts:1", "kiln/staging/app:1"} {
		g.push(t, image)
	}
	until := time.Now().Add(time.Hour)
	for _, c := range []struct {
		who     auth.Principal
		allowed []string
	}{
		{stagingAccess("runs", until), []string{"team/app:1", "team/base:1", "kiln/staging/app:1"}},
		{restrictedAccess("restricted runs", []string{"kiln/staging/*", "team/base"}, until), []string{"team/base:1", "kiln/staging/app:1"}},
	} {
		token, err := g.keys.Mint(c.who)
		must(t, err)
		for _, image := range []string{"team/app:1", "team/base:1", "kiln/contexts:1", "kiln/staging/app:1"} {
			want := 403
			if slices.Contains(c.allowed, image) {
				want = 0
			}
			for how, show := range map[string]remote.Option{"as it is": remote.WithAuth(authn.FromConfig(authn.AuthConfig{RegistryToken: token})), "in a session": user(token)} {
				if _, err := remote.Get(g.ref(t, image), show); refusedWith(err) != want {
					t.Errorf("%s %s reads %s: %v, want %d", c.who.Name, how, image, err, want)
				}
			}
		}
		for repository, want := range map[string]int{"kiln/staging/x": 202, "team/app": 403, "kiln/contexts": 403} {
			if status, _, _ := g.do(t, "Bearer "+token, "POST", "/v2/"+repository+"/blobs/uploads/"); status != want {
				t.Errorf("%s pushes to %s: %d, want %d", c.who.Name, repository, status, want)
			}
		}
		if status, _, _ := g.do(t, "Bearer "+token, "DELETE", "/v2/team/app/manifests/1"); status != 403 {
			t.Errorf("%s deletes: %d", c.who.Name, status)
		}
	}
}

// Clients that people have: go-containerregistry (crane) and skopeo (podman), with a token for team/*.
func TestClientsUseTokens(t *testing.T) {
	t.Parallel()
	g := newGate(t, "public")
	g.push(t, "other/app:1")
	g.push(t, "public/app:1")
	password := g.token(t, "ci", "--repo", "team/*=all")
	img, err := random.Image(2000, 2)
	must(t, err)
	must(t, remote.Write(g.ref(t, "team/app:1"), img, user(password)))
	must(t, remote.Write(g.ref(t, "team/copy:1"), mounted{img, g.ref(t, "team/app:1")}, user(password)))
	if err := remote.Write(g.ref(t, "other/app:2"), img, user(password)); refusedWith(err) != 403 {
		t.Errorf("push elsewhere: %v", err)
	}
	must(t, remote.Delete(g.ref(t, "team/copy:1"), user(password)))

	dir := t.TempDir()
	login := filepath.Join(dir, "auth.json")
	skopeo := func(stdin string, args ...string) error {
		cmd := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "REGISTRY_AUTH_FILE="+login)
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.New(string(out))
		}
		return nil
	}
	image := func(s string) string { return "docker://" + g.host() + "/" + s }
	must(t, skopeo("", "copy", "--src-tls-verify=false", image("public/app:1"), "oci:"+filepath.Join(dir, "public")))
	if err := skopeo("wrong", "login", "--tls-verify=false", "-u", "ci", "--password-stdin", g.host()); err == nil {
		t.Error("skopeo logs in with a wrong password")
	}
	must(t, skopeo(password, "login", "--tls-verify=false", "-u", "ci", "--password-stdin", g.host()))
	must(t, skopeo("", "copy", "--src-tls-verify=false", image("team/app:1"), "oci:"+filepath.Join(dir, "layout")+":x"))
	must(t, skopeo("", "copy", "--dest-tls-verify=false", "oci:"+filepath.Join(dir, "layout")+":x", image("team/new:2")))
	must(t, skopeo("", "delete", "--tls-verify=false", image("team/new:2")))
	if err := skopeo("", "copy", "--src-tls-verify=false", image("other/app:1"), "oci:"+filepath.Join(dir, "other")); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("skopeo reads elsewhere: %v", err)
	}
}

// mounted is an image whose layers are in a repository already.
type mounted struct {
	v1.Image
	from name.Reference
}

func (m mounted) Layers() ([]v1.Layer, error) {
	layers, err := m.Image.Layers()
	for i := range layers {
		layers[i] = &remote.MountableLayer{Layer: layers[i], Reference: m.from}
	}
	return layers, err
}
