package git_test

import (
	"errors"
	"strings"
	"testing"

	"kiln/internal/source/git"
)

func TestCredentialsOfSecrets(t *testing.T) {
	t.Parallel()
	const key = "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter22\n-----END OPENSSH PRIVATE KEY-----"
	keys := git.Keys{"default": []byte("of all"), "own.test": []byte("of one")}
	for _, c := range []struct{ url, value, user, password, key string }{
		{"https://git.test/o/r.git", "", "", "", ""},
		{"https://git.test/o/r.git", "token\n", "", "token", ""},
		{"https://github.com/o/r.git", "token", "x-access-token", "token", ""},
		{"https://gitlab.com/o/r.git", "token", "oauth2", "token", ""},
		{"https://github.com/o/r.git", "ada:pass:word", "ada", "pass:word", ""},
		{"ssh://git@git.test/o/r.git", "\n" + key + "\n", "", "", key + "\n"},
		{"git@git.test:o/r.git", key, "", "", key + "\n"},
		{"git@git.test:o/r.git", "", "", "", "of all"},
		{"ssh://git@Own.test:2222/o/r.git", "", "", "", "of one"},
	} {
		got, err := git.CredentialOf(c.url, c.value, keys)
		if err != nil || got.Username != c.user || got.Password != c.password || string(got.PrivateKey) != c.key {
			t.Errorf("CredentialOf(%s, %q) = %q, %q, %q, %v", c.url, c.value, got.Username, got.Password, got.PrivateKey, err)
		}
	}
	for _, c := range []struct{ url, value string }{{"https://git.test/o/r.git", key}, {"git@git.test:o/r.git", "hunter22"}} {
		if _, err := git.CredentialOf(c.url, c.value, keys); !errors.Is(err, git.ErrDenied) || strings.Contains(err.Error(), "hunter22") {
			t.Errorf("CredentialOf(%s, ...) = %v", c.url, err)
		}
	}
}
