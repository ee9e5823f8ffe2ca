package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/auth"
	"kiln/internal/event"
)

func TestAdminTokenIsKeptInAPrivateFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := auth.Load(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, auth.AdminTokenFile)
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", st.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := auth.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := keys.Verify(t.Context(), strings.TrimSpace(string(b)), time.Now())
	if err != nil || p.Role != auth.RoleAdmin {
		t.Errorf("Verify = %+v, %v", p, err)
	}
}

func TestGrants(t *testing.T) {
	for _, c := range []struct {
		grant, repository string
		allowed           bool
	}{
		{"team/app=pull", "team/app", true}, {"team/app=pull", "team/app2", false}, {"team/app=pull", "team/app/x", false},
		{"team/*=pull", "team/app", true}, {"team/=pull", "team/a/b", true}, {"team/*=pull", "team", false}, {"team*=pull", "teams/x", true},
		{"*=pull", "team/app", true}, {"*=pull", "kiln/contexts", false}, {"k*=pull", "kiln/staging/x", false},
		{"team/app=content/read", "team/app", true}, {"team/app=content/write,metadata/read,content/delete,metadata/write", "team/app", false},
	} {
		g, err := auth.ParseGrant(c.grant)
		if err != nil {
			t.Fatal(err)
		}
		p := auth.Principal{Role: auth.RoleToken, Grants: []event.Grant{g}}
		if err := p.May(event.ContentRead, c.repository); (err == nil) != c.allowed {
			t.Errorf("%s, to read %s: %v", c.grant, c.repository, err)
		}
	}
	for _, bad := range []string{"", "team/app", "team/app=", "team/app=read", "=pull", "Team=pull", "a*b=pull", "te*m/*=pull", "/a=pull", "a//=pull",
		"kiln/contexts=pull", "kiln/*=pull", "kiln/=all", "host:5000/a=pull", strings.Repeat("a", 300) + "=pull"} {
		if g, err := auth.ParseGrant(bad); err == nil {
			t.Errorf("ParseGrant(%q) = %+v", bad, g)
		}
	}
}

func TestForgedTokens(t *testing.T) {
	now := time.Now()
	keys, err := auth.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other, err := auth.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run := auth.Principal{Name: "run ra", Role: auth.RoleRun, Expires: now.Add(time.Hour),
		Grants: []event.Grant{{Repository: "kiln/staging/*", Permissions: []event.Permission{event.ContentWrite}}}}
	good, err := keys.Mint(run)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Mint(run)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := keys.Mint(auth.Principal{Name: "x", Role: auth.RoleAdmin, Expires: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := keys.Verify(t.Context(), good, now)
	may := func(repository string) bool { return p.May(event.ContentWrite, repository) == nil }
	if err != nil || !may("kiln/staging/a") || may("a") || may("kiln/stagingx") {
		t.Errorf("Verify(good) = %+v, %v", p, err)
	}
	for name, token := range map[string]string{
		"empty": "", "short": "k", "foreign": foreign, "admin": admin, "cut": good[:len(good)-2],
		"changed": strings.Replace(good, ".", ".A", 1), "no signature": good[:strings.LastIndex(good, ".")],
	} {
		if p, err := keys.Verify(t.Context(), token, now); err == nil {
			t.Errorf("%s token is accepted as %+v", name, p)
		}
	}
	if _, err := keys.Verify(t.Context(), good, now.Add(2*time.Hour)); err == nil {
		t.Error("expired token is accepted")
	}
}
