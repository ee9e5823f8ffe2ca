package secret_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/secret"
)

func testVaults(t *testing.T) secret.Vaults {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"in/token": "from-file\n", "in/key": "two\nlines\n", "outside": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside", filepath.Join(dir, "in", "escape")); err != nil {
		t.Fatal(err)
	}
	id, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return secret.Vaults{
		"e.test": secret.Env{Prefix: "CI_", Lookup: func(v string) (string, bool) { return "from-env", v == "CI_NPM_TOKEN" }},
		"f.test": secret.Files{Dir: filepath.Join(dir, "in")},
		"s.test": secret.Stored{Prefix: "ci-", Secrets: secret.Named{Identity: id, Record: func(_ context.Context, name string) (event.Secret, error) {
			if name != "ci-token" {
				return event.Secret{}, secret.ErrUnknown
			}
			sealed, err := secret.Seal(id.Recipient(), "from-store")
			return event.Secret{Sealed: sealed}, err
		}}},
	}
}

func TestVaultsAreAskedByHost(t *testing.T) {
	t.Parallel()
	v := testVaults(t)
	for location, want := range map[string]string{
		"https://e.test/secrets/npm-token": "from-env", "https://f.test/secrets/token": "from-file",
		"https://F.test/secrets/key": "two\nlines\n", "https://s.test/secrets/token": "from-store",
	} {
		if got, err := v.Value(t.Context(), location); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", location, got, err, want)
		}
	}
}

func TestVaultsGiveNothingElse(t *testing.T) {
	t.Parallel()
	v := testVaults(t)
	for location, want := range map[string]string{
		"https://other.test/secrets/token":  "kiln serve --vault other.test=PROVIDER",
		"https://e.test/secrets/path":       "no environment variable CI_PATH",
		"https://f.test/secrets/none":       "no file none",
		"https://f.test/secrets/..":         "does not name a secret",
		"https://f.test/secrets/escape":     "escape",
		"https://f.test/secrets/%2e%2e%2fx": "does not name a secret",
		"https://f.test/keys/token":         "does not name a secret",
		"https://f.test/secrets/token/v1":   "has no versions",
		"https://s.test/secrets/forge":      `"ci-forge"`,
	} {
		got, err := v.Value(t.Context(), location)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s = %q, %v, want %q", location, got, err, want)
		}
	}
	if _, err := v.Value(t.Context(), "https://s.test/secrets/forge"); !errors.Is(err, secret.ErrUnknown) {
		t.Errorf("a secret that is not stored: %v", err)
	}
}

func TestVaultsOfAnOperator(t *testing.T) {
	t.Parallel()
	host, kind, what, err := secret.ParseVault("My.Vault.azure.net=file:/a:b")
	if host != "my.vault.azure.net" || kind != "file" || what != "/a:b" || err != nil {
		t.Errorf("ParseVault = %q, %q, %q, %v", host, kind, what, err)
	}
	for _, entry := range []string{"", "x", "=env:A", "h=env", "h=env:", "h=vault:x", "https://h=env:A", "h=file:"} {
		if _, _, _, err := secret.ParseVault(entry); err == nil {
			t.Errorf("ParseVault(%q) is accepted", entry)
		}
	}
}
