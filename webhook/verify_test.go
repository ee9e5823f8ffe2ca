package webhook_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"kiln/webhook"
)

// sample is a body that every provider of the tests can be authenticated with; it is not decoded.
var sample = []byte("Hello, World!")

// An authenticated sample is refused as 400: it is no JSON. That is how the tests below tell it from
// one that is not authenticated.
const (
	authenticated = http.StatusBadRequest
	refused       = http.StatusNotFound
)

func hookOf(provider, secret, previous string) webhook.Hook {
	return webhook.Hook{ID: "h1", Provider: provider, Secret: webhook.Secret(secret), Previous: webhook.Secret(previous), Enabled: true}
}

// event headers make every provider look at the body.
func eventHeader() http.Header {
	h := http.Header{}
	for _, kv := range [][2]string{{"X-GitHub-Event", "push"}, {"X-Gitlab-Event", "Push Hook"}, {"X-Event-Key", "repo:push"}} {
		h.Set(kv[0], kv[1])
	}
	return h
}

func status(t *testing.T, hook webhook.Hook, header http.Header, query string) int {
	t.Helper()
	h := eventHeader()
	for k, v := range header {
		h[k] = v
	}
	return newServer(t, hook).send(t, http.MethodPost, "/hooks/"+hook.Provider+"/h1"+query, h, sample).status
}

// TestPublishedVectors checks values that others have published or computed.
func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	const secret = "It's a Secret to Everybody" // of GitHub's documentation, with its body
	const sum = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	for provider, header := range map[string]string{"github": "X-Hub-Signature-256=sha256=", "generic": "X-Hub-Signature-256=sha256=",
		"gitea": "X-Gitea-Signature=", "forgejo": "X-Forgejo-Signature=", "bitbucket": "X-Hub-Signature=sha256="} {
		name, prefix, _ := strings.Cut(header, "=")
		h := http.Header{}
		h.Set(name, prefix+sum)
		if got := status(t, hookOf(provider, secret, ""), h, ""); got != authenticated {
			t.Errorf("%s: status %d for the published signature, want %d", provider, got, authenticated)
		}
	}
}

func TestBadSignaturesAreRefused(t *testing.T) {
	t.Parallel()
	for _, provider := range webhook.Providers() {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			name, good := authentication(provider, testSecret, sample)
			_, other := authentication(provider, "another secret", sample)
			_, empty := authentication(provider, "", sample)
			for what, value := range map[string]string{"empty": "", "cut": good[:len(good)-1], "longer": good + "0", "another secret's": other,
				"empty secret's": empty, "prefix only": "sha256=", "sha1": "sha1=2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
				"another prefix": "md5=" + strings.TrimPrefix(good, "sha256="), "scheme only": "Basic ", "bearer only": "Bearer ",
				"broken base64": "Basic %%%", "no colon": "Basic " + base64.StdEncoding.EncodeToString([]byte("x"))} {
				if got := status(t, hookOf(provider, testSecret, ""), http.Header{http.CanonicalHeaderKey(name): {value}}, ""); got != refused {
					t.Errorf("%s signature: status %d, want %d", what, got, refused)
				}
			}
			if got := status(t, hookOf(provider, testSecret, ""), nil, ""); got != refused {
				t.Errorf("no signature: status %d, want %d", got, refused)
			}
			for secret, want := range map[string]int{testSecret: authenticated, "": refused} {
				if got := status(t, hookOf(provider, secret, ""), http.Header{http.CanonicalHeaderKey(name): {good}}, ""); got != want {
					t.Errorf("hook with secret %q: status %d, want %d", secret, got, want)
				}
			}
			for _, sent := range []string{good, other} {
				if got := status(t, hookOf(provider, testSecret, "another secret"), http.Header{http.CanonicalHeaderKey(name): {sent}}, ""); got != authenticated {
					t.Errorf("during rotation: status %d, want %d", got, authenticated)
				}
			}
			if got := status(t, hookOf(provider, "", ""), http.Header{http.CanonicalHeaderKey(name): {empty}}, ""); got != refused {
				t.Errorf("hook without a secret: status %d, want %d", got, refused)
			}
		})
	}
}

func TestEmptySignatureIsNotPassedOver(t *testing.T) {
	t.Parallel()
	good := hexMAC(testSecret, sample)
	h := http.Header{"X-Gitea-Signature": {""}, "X-Hub-Signature-256": {"sha256=" + good}}
	if got := status(t, hookOf("gitea", testSecret, ""), h, ""); got != refused {
		t.Errorf("status %d, want %d", got, refused)
	}
	delete(h, "X-Gitea-Signature")
	if got := status(t, hookOf("gitea", testSecret, ""), h, ""); got != authenticated {
		t.Errorf("GitHub's header alone: status %d, want %d", got, authenticated)
	}
}

func TestLegacySHA1IsRefused(t *testing.T) {
	t.Parallel()
	// HMAC-SHA1 of the sample with GitHub's documented secret, by openssl.
	h := http.Header{"X-Hub-Signature": {"sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"}}
	for _, provider := range []string{"github", "bitbucket", "gitea"} {
		if got := status(t, hookOf(provider, "It's a Secret to Everybody", ""), h, ""); got != refused {
			t.Errorf("%s: status %d, want %d", provider, got, refused)
		}
	}
}

func TestTokenForms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		provider, name, value, query string
		want                         int
	}{
		{"distribution", "Authorization", "Bearer " + testSecret, "", authenticated},
		{"distribution", "Authorization", "bearer " + testSecret, "", authenticated},
		{"harbor", "Authorization", testSecret, "", authenticated},
		{"acr", "X-Kiln-Token", testSecret, "", authenticated},
		{"azure-devops", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(":"+testSecret)), "", authenticated},
		{"azure-devops", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(testSecret+":")), "", refused},
		{"dockerhub", "X", "", "?token=a+secret+of+the+tests", authenticated},
		{"quay", "X", "", "?token=a%20secret%20of%20the%20tests", authenticated},
		{"dockerhub", "X", "", "?token=", refused},
		{"dockerhub", "X", "", "?token=%zz", refused},
		{"harbor", "X", "", "?token=a+secret+of+the+tests", refused}, // it can set a header
		{"github", "X", "", "?token=a+secret+of+the+tests", refused},
	} {
		if got := status(t, hookOf(c.provider, testSecret, ""), http.Header{c.name: {c.value}}, c.query); got != c.want {
			t.Errorf("%s %s %q %s: status %d, want %d", c.provider, c.name, c.value, c.query, got, c.want)
		}
	}
}

func TestStandardWebhooks(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef01234567")
	secret := "whsec_" + base64.StdEncoding.EncodeToString(key)
	good := standard(key, "m1", testTime, sample)
	with := func(name, value string) http.Header {
		h := good.Clone()
		h.Set(name, value)
		return h
	}
	sig := good.Get("webhook-signature")
	for _, provider := range []string{"gitlab", "generic", "cloudevents"} {
		for _, c := range []struct {
			name   string
			secret string
			header http.Header
			want   int
		}{
			{"good", secret, good, authenticated},
			{"plain key", string(key), good, authenticated},
			{"one of several", secret, with("webhook-signature", "v1,AAAA v1a,xyz "+sig), authenticated},
			{"too many", secret, with("webhook-signature", strings.Repeat("v1,AAAA ", 8)+sig), refused},
			{"other version", secret, with("webhook-signature", "v2"+sig[2:]), refused},
			{"empty", secret, with("webhook-signature", ""), refused},
			{"short", secret, with("webhook-signature", sig[:len(sig)-4]), refused},
			{"other ID", secret, with("webhook-id", "m2"), refused},
			{"no ID", secret, standard(key, "", testTime, sample), refused},
			{"other time", secret, with("webhook-timestamp", "1763726401"), refused},
			{"no time", secret, with("webhook-timestamp", ""), refused},
			{"old", secret, standard(key, "m1", testTime.Add(-6*time.Minute), sample), refused},
			{"from the future", secret, standard(key, "m1", testTime.Add(6*time.Minute), sample), refused},
			{"a little late", secret, standard(key, "m1", testTime.Add(-4*time.Minute), sample), authenticated},
		} {
			if got := status(t, hookOf(provider, c.secret, ""), c.header, ""); got != c.want {
				t.Errorf("%s, %s: status %d, want %d", provider, c.name, got, c.want)
			}
		}
	}
	// A signature that is there must be right, whatever else is.
	h := with("webhook-signature", "v1,AAAA")
	h.Set("X-Gitlab-Token", secret)
	if got := status(t, hookOf("gitlab", secret, ""), h, ""); got != refused {
		t.Errorf("wrong signature beside a token: status %d, want %d", got, refused)
	}
}

// TestStandardVector checks a signature computed by openssl.
func TestStandardVector(t *testing.T) {
	t.Parallel()
	at := time.Unix(1763726400, 0)
	if !at.Equal(testTime) {
		t.Fatalf("the vector is of %v, the clock of the tests says %v", at.UTC(), testTime)
	}
	h := http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {"1763726400"},
		"Webhook-Signature": {"v1,ySudhir5SlJA4YczP3AnUI2w9ODCfMaA9pfAPdq9byI="}}
	if got := status(t, hookOf("generic", "a secret of the tests", ""), h, ""); got != authenticated {
		t.Errorf("status %d, want %d", got, authenticated)
	}
}
