package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// errDenied covers everything that a stranger must not be able to tell apart.
var errDenied = errors.New("delivery is not authenticated")

// noSecret is checked against where there is no secret, so that this takes as long. What it admits is
// not used.
const noSecret Secret = "there is no such hook, and no such secret"

// A signed delivery is what a verifier looks at.
type signed struct {
	header http.Header
	query  string // of the URL
	body   []byte
	now    time.Time
}

// A verifier reports whether a delivery was made by one who knows the secret, which is not empty. It
// compares in constant time and does not parse the body.
type verifier func(s signed, secret Secret) bool

// authenticate returns the hook that a delivery may use, and its provider.
func (h *Handler) authenticate(r *http.Request, name, id string, body []byte) (Hook, provider, error) {
	p, known := providers[name]
	if !known {
		p = providers["generic"]
	}
	hook, err := h.Hooks(r.Context(), clip(id, maxName))
	if err != nil && !errors.Is(err, ErrNoHook) {
		return Hook{}, provider{}, err
	}
	if err != nil || !known || hook.Provider != name || id == "" {
		hook = Hook{} // goes through the same check, to no avail
	}
	s := signed{header: r.Header, query: r.URL.RawQuery, body: body, now: h.now()}
	if !authentic(p.verify, s, hook.Secret) && !authentic(p.verify, s, hook.Previous) {
		return Hook{}, provider{}, errDenied
	}
	return hook, p, nil
}

// authentic checks against a secret; against none it takes as long and fails.
func authentic(verify verifier, s signed, secret Secret) bool {
	if secret == "" {
		verify(s, noSecret)
		return false
	}
	return verify(s, secret)
}

// hexSignature returns a verifier of an HMAC-SHA256 of the body in hex, in the first of the headers
// that is present; an empty one fails, and leads to no other.
func hexSignature(headers ...signatureHeader) verifier {
	return func(s signed, secret Secret) bool {
		want := mac(secret, s.body)
		for _, h := range headers {
			if values := s.header[h.name]; len(values) > 0 {
				return sameHex(values[0], h.prefix, want)
			}
		}
		return false
	}
}

// A signatureHeader is where a signature is, in canonical form, and what comes before it.
type signatureHeader struct{ name, prefix string }

// The signature headers of GitHub, which others send too, and of its relatives.
var (
	hubHeader     = signatureHeader{"X-Hub-Signature-256", "sha256="}
	hubOldHeader  = signatureHeader{"X-Hub-Signature", "sha256="} // Bitbucket's; GitHub has SHA-1 there
	giteaHeader   = signatureHeader{"X-Gitea-Signature", ""}
	gogsHeader    = signatureHeader{"X-Gogs-Signature", ""}
	forgejoHeader = signatureHeader{"X-Forgejo-Signature", ""}
)

func mac(secret Secret, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// sameHex reports whether a header is prefix and the hex form of want.
func sameHex(header, prefix string, want []byte) bool {
	got, ok := strings.CutPrefix(header, prefix)
	if !ok || len(got) != hex.EncodedLen(len(want)) {
		return false
	}
	var sum [sha256.Size]byte
	if _, err := hex.Decode(sum[:], []byte(got)); err != nil {
		return false
	}
	return hmac.Equal(sum[:], want)
}

// sameToken compares a token with the secret in a time that depends on neither.
func sameToken(token string, secret Secret) bool {
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && token != ""
}

// headerToken accepts the secret as Basic password, bearer token, whole Authorization header or
// X-Kiln-Token.
func headerToken(s signed, secret Secret) bool {
	auth := s.header.Get("Authorization")
	scheme, rest, _ := strings.Cut(auth, " ")
	basic, bearer := "", ""
	switch strings.ToLower(scheme) {
	case "basic":
		if plain, err := base64.StdEncoding.DecodeString(rest); err == nil {
			_, basic, _ = strings.Cut(string(plain), ":")
		}
	case "bearer":
		bearer = rest
	}
	ok := false
	for _, token := range [...]string{auth, basic, bearer, s.header.Get("X-Kiln-Token")} {
		ok = sameToken(token, secret) || ok
	}
	return ok
}

// urlToken accepts the secret as the query's token, or as headerToken does.
func urlToken(s signed, secret Secret) bool {
	return sameToken(queryToken(s.query), secret) || headerToken(s, secret)
}

func queryToken(query string) string {
	values, err := url.ParseQuery(query)
	if err != nil {
		return ""
	}
	return values.Get("token")
}

// standardTolerance is how far a signed timestamp may be from the clock.
const standardTolerance = 5 * time.Minute

// maxSignatures is how many signatures of one webhook-signature header are looked at.
const maxSignatures = 8

// standardSignature verifies a signature as Standard Webhooks defines it.
func standardSignature(s signed, secret Secret) bool {
	id, stamp := s.header.Get("Webhook-Id"), s.header.Get("Webhook-Timestamp")
	want := mac(standardKey(secret), []byte(id+"."+stamp+"."), s.body)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	fresh := err == nil && id != "" && s.now.Sub(time.Unix(seconds, 0)).Abs() <= standardTolerance
	ok := false
	for i, one := range strings.Fields(s.header.Get(standardHeader)) {
		if i == maxSignatures {
			break
		}
		got, v1 := strings.CutPrefix(one, "v1,")
		sum, err := base64.StdEncoding.DecodeString(got)
		ok = hmac.Equal(sum, want) && v1 && err == nil || ok
	}
	return ok && fresh
}

const standardHeader = "Webhook-Signature"

// standardKey decodes a secret in the form of Standard Webhooks; any other is the key itself.
func standardKey(secret Secret) Secret {
	if coded, ok := strings.CutPrefix(string(secret), "whsec_"); ok {
		if key, err := base64.StdEncoding.DecodeString(coded); err == nil && len(key) > 0 {
			return Secret(key)
		}
	}
	return secret
}

// standardOr returns a verifier for senders of which only some sign as Standard Webhooks says: if
// there is such a signature, it alone counts.
func standardOr(other verifier) verifier {
	return func(s signed, secret Secret) bool {
		if _, ok := s.header[standardHeader]; ok {
			return standardSignature(s, secret)
		}
		return other(s, secret)
	}
}

// gitlabToken verifies GitLab's plain token.
func gitlabToken(s signed, secret Secret) bool {
	return sameToken(s.header.Get("X-Gitlab-Token"), secret)
}
