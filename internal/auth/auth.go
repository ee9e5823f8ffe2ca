// Package auth says who a caller is and what it may do.
//
// A caller shows one of three kinds of tokens. The admin token is random, kept in a file of mode 0600 that
// the local command line finds, and may do everything. Tokens that administrators make have permissions
// for repositories, and a role if they are good for more than images; of them only a hash is stored. Statements are signed (HMAC-SHA256), expire soon and
// need no storage: runs get them, and clients of the registry, in exchange for one of the others. What a
// statement permits is no more than what it was made from does; one that was made from a stored token ends
// with that token. Tokens are compared in constant time and never logged.
//
// kiln's own repositories, those below "kiln/", are open only to administrators and runs.
package auth

import (
	"context"
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
	"strings"
	"time"

	"kiln/internal/event"
)

// Role is what a principal is.
type Role string

// Roles.
const (
	RoleAdmin     Role = "admin"     // everything
	RoleAuthor    Role = "author"    // what RoleRunner may; writes tasks and secrets, and builds what it likes
	RoleRunner    Role = "runner"    // what RoleReader may; runs tasks as they are
	RoleReader    Role = "reader"    // looks at tasks and runs
	RoleRun       Role = "run"       // pulls, and stages images; of one attempt, also publishes
	RoleServer    Role = "server"    // another process of the same server: reads, raises fences
	RoleToken     Role = "token"     // what its token has permissions for
	RoleSession   Role = "session"   // what a client of the registry asked for, of what another principal may
	RoleAnonymous Role = "anonymous" // what is for everybody
)

// A Principal is an authenticated caller, or anybody.
type Principal struct {
	Name string `json:"sub"`
	Role Role   `json:"role"`
	// Grants are what it may do, unless it is an administrator.
	Grants  []event.Grant `json:"grants,omitempty"`
	Expires time.Time     `json:"exp,omitzero"`
	// Tasks are names and patterns of the tasks that there are for it; none means all.
	Tasks []string `json:"-"`

	// Run is the run that it may publish for, empty for none.
	Run string `json:"run,omitempty"`

	// Token is the stored token that p is, or was made from; nil for none.
	Token *tokenRef `json:"token,omitempty"`
	// Of a session: what was asked for and is not permitted; if the list of repositories was asked for,
	// what its owner may do; and whether it was made for who showed no token.
	Refused   []event.Grant `json:"refused,omitempty"`
	Catalog   []event.Grant `json:"catalog,omitempty"`
	Anonymous bool          `json:"anonymous,omitempty"`
}

// TokenID is the ID of the stored token that p is, or was made from; empty for none.
func (p Principal) TokenID() string {
	if p.Token == nil {
		return ""
	}
	return p.Token.ID
}

// A tokenRef names a stored token.
type tokenRef struct {
	Key string `json:"key"`
	ID  string `json:"id"`
}

// Why something is not permitted.
var (
	// ErrToken is returned for a token that is missing, wrong or expired, and to who has shown none for what
	// is not for everybody.
	ErrToken = errors.New("token is missing, wrong or expired")
	// ErrScope is returned for a session that was not asked for this; another one may do it.
	ErrScope = errors.New("the session was not made for this")
	// ErrDenied is returned to a known principal that may not do it.
	ErrDenied = errors.New("no permission")
)

// May returns nil if p may do something with a repository, otherwise ErrToken, ErrScope or ErrDenied.
func (p Principal) May(what event.Permission, repository string) error {
	switch {
	case p.Role == RoleAdmin || allowed(p.Grants, what, repository):
		return nil
	case p.Role == RoleAnonymous || p.Anonymous:
		return ErrToken
	case p.Role == RoleSession && !allowed(p.Refused, what, repository):
		return ErrScope
	}
	return ErrDenied
}

// Sees returns what reports whether p may know that a repository exists, or why there is no list of
// repositories for p.
func (p Principal) Sees() (func(repository string) bool, error) {
	grants := p.Grants
	switch {
	case p.Role == RoleAdmin:
		return func(string) bool { return true }, nil
	case p.Role == RoleSession && p.Catalog == nil:
		return nil, ErrScope
	case p.Role == RoleSession:
		grants = p.Catalog
	case p.Role == RoleAnonymous && len(grants) == 0:
		return nil, ErrToken
	}
	return func(repository string) bool {
		return allowed(grants, event.MetadataRead, repository) || allowed(grants, event.ContentRead, repository)
	}, nil
}

// AdminTokenFile is the name of the file that holds the admin token, in the data directory.
const AdminTokenFile = "admin.token"

// Keys verify and mint tokens.
type Keys struct {
	admin [sha256.Size]byte // hash of the admin token
	sign  []byte

	// Stored returns the record of the token with a key, or ErrToken if there is none. It is set before
	// the first use; nil means that there are no such tokens.
	Stored func(ctx context.Context, key string) (event.Token, error)
	// Used is told, at each use, which stored token was used and when. It does not block. Nil is told nothing.
	Used func(key, id string, now time.Time)
	// Anonymous is what callers without a token may do.
	Anonymous []event.Grant
	// PublicURL is an address of the server that clients use, if TLS ends in front of it.
	PublicURL string
}

// Load reads the keys in dir, making them at first start.
func Load(dir string) (*Keys, error) {
	admin, err := SecretFile(filepath.Join(dir, AdminTokenFile))
	if err != nil {
		return nil, err
	}
	sign, err := SecretFile(filepath.Join(dir, "signing.key"))
	if err != nil {
		return nil, err
	}
	return &Keys{admin: sha256.Sum256([]byte(admin)), sign: []byte(sign)}, nil
}

// SecretFile returns the word in a file that only its owner reads, generating both when there is no such file.
func SecretFile(path string) (string, error) {
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
func (k *Keys) Verify(ctx context.Context, token string, now time.Time) (Principal, error) {
	hash := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(hash[:], k.admin[:]) == 1 {
		return Principal{Name: "admin", Role: RoleAdmin}, nil
	}
	if strings.HasPrefix(token, storedPrefix) {
		return k.verifyStored(ctx, token, hash[:], now)
	}
	p, err := k.verifySigned(token)
	if err != nil || !now.Before(p.Expires) {
		return Principal{}, ErrToken
	}
	if p.Token != nil {
		if err := k.stillThere(ctx, *p.Token, now); err != nil {
			return Principal{}, err
		}
	}
	return p, nil
}

// verifySigned returns what a signed token states.
func (k *Keys) verifySigned(token string) (Principal, error) {
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
	if err := json.Unmarshal(body, &p); err != nil || p.Role != RoleRun && p.Role != RoleServer && p.Role != RoleSession {
		return Principal{}, ErrToken
	}
	return p, nil
}
