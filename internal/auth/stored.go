package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"
	"time"

	"kiln/internal/event"
)

// storedPrefix begins tokens that administrators made: kt_KEY_SECRET.
const storedPrefix = "kt_"

// maxName is how long the name of a token may be.
const maxName = 64

// TokenKey is the key of the record of the token with a name.
func TokenKey(name string) string { return event.Hash(name) }

// ValidTokenName reports what is wrong with the name of a token.
func ValidTokenName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) || strings.ContainsRune(".-", rune(name[0])) {
		return fmt.Errorf("%.80q: want 1 to %d letters, digits and . _ -, not beginning with . or -", name, maxName)
	}
	return nil
}

// NewToken returns a token that nobody has, and the record to store of it: t with an ID and the token's hash.
func NewToken(t event.Token) (string, event.Token) {
	token := storedPrefix + TokenKey(t.Name) + "_" + rand.Text()
	hash := sha256.Sum256([]byte(token))
	t.ID, t.Hash = rand.Text()[:12], hash[:]
	return token, t
}

// verifyStored returns who shows a token that is stored; hash is the token's.
func (k *Keys) verifyStored(ctx context.Context, token string, hash []byte, now time.Time) (Principal, error) {
	key, _, _ := strings.Cut(strings.TrimPrefix(token, storedPrefix), "_")
	t, err := k.stored(ctx, key)
	switch {
	case err != nil:
		return Principal{}, err
	case subtle.ConstantTimeCompare(hash, t.Hash) != 1 || expired(t, now):
		return Principal{}, ErrToken
	}
	k.used(key, t.ID, now)
	role := RoleToken
	if t.Role != "" {
		role = Role(t.Role)
	}
	return Principal{Name: "token " + t.Name, Role: role, Grants: t.Grants, Tasks: t.Tasks, Expires: t.Expires, Token: &tokenRef{key, t.ID}}, nil
}

// stillThere returns ErrToken if a token was deleted or has expired.
func (k *Keys) stillThere(ctx context.Context, ref tokenRef, now time.Time) error {
	t, err := k.stored(ctx, ref.Key)
	if err == nil && (t.ID != ref.ID || expired(t, now)) {
		return ErrToken
	}
	if err == nil {
		k.used(ref.Key, ref.ID, now)
	}
	return err
}

func (k *Keys) used(key, id string, now time.Time) {
	if k.Used != nil {
		k.Used(key, id, now)
	}
}

func (k *Keys) stored(ctx context.Context, key string) (event.Token, error) {
	if k.Stored == nil || len(key) != len(event.Hash("")) || strings.Trim(key, "0123456789abcdef") != "" {
		return event.Token{}, ErrToken
	}
	return k.Stored(ctx, key)
}

func expired(t event.Token, now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }
