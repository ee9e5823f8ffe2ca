// Package auth says who a caller is and what it may do.
//
// There are two kinds of tokens. The admin token is random, kept in a file of mode 0600 that the local
// command line finds. Tokens of runs are signed statements (HMAC-SHA256) with an expiry; they
// need no storage and end by themselves. Tokens are compared in constant time and never logged.
package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Role is what a principal is.
type Role string

// Roles.
const (
	RoleAdmin Role = "admin" // everything
	RoleRun   Role = "run"   // pulls, and stages images
)

// A Principal is an authenticated caller.
type Principal struct {
	Name string `json:"sub"`
	Role Role   `json:"role"`
	// Push lists the repositories a run may push to; one that ends in "*" stands for all that begin so.
	Push []string `json:"push,omitempty"`
	// Pull lists the repositories a run may pull from, written as those of Push. Nil stands for all.
	Pull    []string  `json:"pull,omitzero"`
	Expires time.Time `json:"exp"`
}

// MayPush reports whether p may push to the repository.
func (p Principal) MayPush(repository string) bool {
	return p.Role == RoleAdmin || listed(p.Push, repository)
}

// MayPull reports whether p may pull from the repository. The empty one stands for the registry as such:
// whoever is known may ask whether it is there.
func (p Principal) MayPull(repository string) bool {
	return p.Role == RoleAdmin || p.Pull == nil || repository == "" || listed(p.Pull, repository)
}

// listed reports whether one of the patterns stands for the repository.
func listed(patterns []string, repository string) bool {
	return slices.ContainsFunc(patterns, func(allowed string) bool {
		prefix, open := strings.CutSuffix(allowed, "*")
		return allowed == repository || open && strings.HasPrefix(repository, prefix)
	})
}

// ErrToken is returned for a token that is missing, wrong or expired.
var ErrToken = errors.New("token is missing, wrong or expired")

// AdminTokenFile is the name of the file that holds the admin token, in the data directory.
const AdminTokenFile = "admin.token"

// Keys verify and mint tokens.
type Keys struct {
	admin [sha256.Size]byte // hash of the admin token
	sign  []byte
}

// Load reads the keys in dir, making them at first start.
func Load(dir string) (*Keys, error) {
	admin, err := secretFile(filepath.Join(dir, AdminTokenFile))
	if err != nil {
		return nil, err
	}
	sign, err := secretFile(filepath.Join(dir, "signing.key"))
	if err != nil {
		return nil, err
	}
	return &Keys{admin: sha256.Sum256([]byte(admin)), sign: []byte(sign)}, nil
}

// secretFile returns the word in the file, generating it when the file does not exist.
func secretFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err == nil {
		return "", fmt.Errorf("%s: holds no token; delete it and start again", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	word := "kiln_" + rand.Text() + rand.Text()
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(word+"\n"), 0o600); err != nil {
		return "", err
	}
	return word, os.Rename(tmp, path)
}

// Mint returns a token that states p until p.Expires.
func (k *Keys) Mint(p Principal) (string, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	return "kr." + enc.EncodeToString(body) + "." + enc.EncodeToString(k.mac(body)), nil
}

func (k *Keys) mac(body []byte) []byte {
	m := hmac.New(sha256.New, k.sign)
	m.Write(body)
	return m.Sum(nil)
}

// Verify returns the principal a token stands for, or ErrToken.
func (k *Keys) Verify(token string, now time.Time) (Principal, error) {
	if h := sha256.Sum256([]byte(token)); subtle.ConstantTimeCompare(h[:], k.admin[:]) == 1 {
		return Principal{Name: "admin", Role: RoleAdmin}, nil
	}
	rest, ok := strings.CutPrefix(token, "kr.")
	if !ok {
		return Principal{}, ErrToken
	}
	b64, sig, _ := strings.Cut(rest, ".")
	body, err := base64.RawURLEncoding.DecodeString(b64)
	if err != nil {
		return Principal{}, ErrToken
	}
	mac, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil || !hmac.Equal(mac, k.mac(body)) {
		return Principal{}, ErrToken
	}
	var p Principal
	if err := json.Unmarshal(body, &p); err != nil || now.After(p.Expires) || p.Role == RoleAdmin {
		return Principal{}, ErrToken
	}
	return p, nil
}
