package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/auth"
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
	p, err := keys.Verify(strings.TrimSpace(string(b)), time.Now())
	if err != nil || p.Role != auth.RoleAdmin {
		t.Errorf("Verify = %+v, %v", p, err)
	}
}

func TestPull(t *testing.T) {
	keys, err := auth.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		pull    []string
		repo    string
		allowed bool
	}{
		{nil, "team/app", true}, {[]string{}, "team/app", false}, {[]string{}, "", true},
		{[]string{"team/app", "kiln/*"}, "team/app", true}, {[]string{"team/app", "kiln/*"}, "kiln/x", true},
		{[]string{"team/app", "kiln/*"}, "team/app2", false}, {[]string{"team/app", "kiln/*"}, "team", false},
	} {
		token, err := keys.Mint(auth.Principal{Name: "r", Role: auth.RoleRun, Pull: c.pull, Expires: now.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		p, err := keys.Verify(token, now)
		if err != nil || p.MayPull(c.repo) != c.allowed {
			t.Errorf("pull %v of %q is allowed: %t, %v; want %t", c.pull, c.repo, p.MayPull(c.repo), err, c.allowed)
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
	run := auth.Principal{Name: "run ra", Role: auth.RoleRun, Push: []string{"kiln/staging/*"}, Expires: now.Add(time.Hour)}
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
	p, err := keys.Verify(good, now)
	if err != nil || !p.MayPush("kiln/staging/a") || p.MayPush("a") || p.MayPush("kiln/stagingx") {
		t.Errorf("Verify(good) = %+v, %v", p, err)
	}
	for name, token := range map[string]string{
		"empty": "", "short": "k", "foreign": foreign, "admin": admin, "cut": good[:len(good)-2],
		"changed": strings.Replace(good, ".", ".A", 1), "no signature": good[:strings.LastIndex(good, ".")],
	} {
		if p, err := keys.Verify(token, now); err == nil {
			t.Errorf("%s token is accepted as %+v", name, p)
		}
	}
	if _, err := keys.Verify(good, now.Add(2*time.Hour)); err == nil {
		t.Error("expired token is accepted")
	}
}
