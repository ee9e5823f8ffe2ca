package webhook

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kiln/internal/event"
)

func FuzzDecodeGitHub(f *testing.F)       { fuzzDecoder(f, "github", "X-Github-Event") }
func FuzzDecodeGitea(f *testing.F)        { fuzzDecoder(f, "gitea", "X-Gitea-Event") }
func FuzzDecodeForgejo(f *testing.F)      { fuzzDecoder(f, "forgejo", "X-Forgejo-Event") }
func FuzzDecodeGitLab(f *testing.F)       { fuzzDecoder(f, "gitlab", "X-Gitlab-Event") }
func FuzzDecodeBitbucket(f *testing.F)    { fuzzDecoder(f, "bitbucket", "X-Event-Key") }
func FuzzDecodeAzure(f *testing.F)        { fuzzDecoder(f, "azure-devops", "Content-Type") }
func FuzzDecodeGeneric(f *testing.F)      { fuzzDecoder(f, "generic", "Content-Type") }
func FuzzDecodeDistribution(f *testing.F) { fuzzDecoder(f, "distribution", "Content-Type") }
func FuzzDecodeACR(f *testing.F)          { fuzzDecoder(f, "acr", "Content-Type") }
func FuzzDecodeHarbor(f *testing.F)       { fuzzDecoder(f, "harbor", "Content-Type") }
func FuzzDecodeDockerHub(f *testing.F)    { fuzzDecoder(f, "dockerhub", "Content-Type") }
func FuzzDecodeQuay(f *testing.F)         { fuzzDecoder(f, "quay", "Content-Type") }
func FuzzDecodeCloudEvents(f *testing.F)  { fuzzDecoder(f, "cloudevents", "Ce-Type") }

// fuzzDecoder checks what holds of the facts of any delivery. The fuzzed header is the one that names
// the event.
func fuzzDecoder(f *testing.F, name, header string) {
	for _, s := range seeds(f, name) {
		f.Add(s.header[header], s.header["Content-Type"], []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, kind, contentType string, body []byte) {
		h := http.Header{}
		h.Set("Content-Type", contentType)
		h.Set(header, kind)
		if header == "Ce-Type" && kind != "" {
			h.Set("Ce-Id", "1")
		}
		d := delivery{header: h, hook: Hook{ID: "h", Provider: name}}
		var err error
		if d.body, err = payload(h, body); err != nil {
			return
		}
		if d.found, err = providers[name].decode(d); err != nil {
			if len(d.facts) > 0 {
				t.Errorf("facts and an error: %v", err)
			}
			return
		}
		if len(d.facts) == 0 && !d.ping && d.ignored == "" {
			t.Error("no fact, no ping, and no reason for it")
		}
		if len(d.facts) > maxFacts {
			t.Errorf("%d facts", len(d.facts))
		}
		for _, one := range d.facts {
			checkFact(t, one)
		}
	})
}

func checkFact(t *testing.T, f fact) {
	t.Helper()
	via := event.Delivery{Hook: "h", Provider: "p", ID: "1", Received: time.Unix(1, 0).UTC()}
	id, subject, encoded, err := encode(f, via)
	if err != nil {
		t.Fatal(err)
	}
	if again, _, _, _ := encode(f, via); again != id {
		t.Errorf("IDs %s and %s of one fact", id, again)
	}
	if len(id) != 32 || strings.ContainsAny(subject, " *>") {
		t.Errorf("ID %q, subject %q", id, subject)
	}
	if len(encoded) > 4<<20 {
		t.Errorf("an event of %d bytes", len(encoded))
	}
	var e event.Event
	if err := json.Unmarshal(encoded, &e); err != nil {
		t.Fatal(err)
	}
	switch {
	case f.push != nil:
		checkPush(t, *f.push)
	case f.pull != nil:
		p := f.pull
		if p.Number <= 0 || p.Action == "" || !isHash(p.HeadSHA, true) || !goodRefName(p.BaseRef) || !goodRefName(p.HeadRef) {
			t.Errorf("pull request %+v", p)
		}
		checkURLs(t, p.Repository, p.HeadRepository)
	default:
		p := f.image
		if p.Registry == "" || p.Tag == "" || referrerTag(p.Tag) || !namePattern.MatchString(p.Repository) {
			t.Errorf("image %+v", p)
		}
	}
}

func checkPush(t *testing.T, p event.GitPushed) {
	t.Helper()
	if !isRef(p.Ref) || p.Created && p.Deleted || p.Deleted && p.After != "" {
		t.Errorf("push %+v", p)
	}
	for _, id := range []string{p.Before, p.After} {
		if id != "" && (!isHash(id, false) || notZero(id) == "") {
			t.Errorf("commit ID %q", id)
		}
	}
	if !p.Deleted && !p.FilesUnknown && len(p.Commits) == 0 {
		t.Error("a push without commits says that its files are known")
	}
	checkURLs(t, p.Repository)
}

func checkURLs(t *testing.T, repositories ...event.Repository) {
	t.Helper()
	for _, r := range repositories {
		for _, u := range append(r.CloneURLs, r.WebURL) {
			parsed, err := url.Parse(u)
			if scpPattern.MatchString(u) && !strings.Contains(u, "://") {
				continue
			}
			password := false
			if err == nil && parsed.User != nil {
				_, password = parsed.User.Password()
			}
			if err != nil || password || !utf8.ValidString(u) || strings.HasPrefix(u, "http") && parsed.User != nil {
				t.Errorf("URL %q", u)
			}
		}
	}
}

type seed struct {
	header map[string]string
	body   json.RawMessage
}

// seeds returns the deliveries of testdata that a provider makes.
func seeds(f *testing.F, provider string) []seed {
	f.Helper()
	files, err := filepath.Glob("testdata/deliveries/" + provider + "-*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no deliveries of %s in testdata: %v", provider, err)
	}
	var all []seed
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		var s struct {
			Header map[string]string `json:"header"`
			Body   json.RawMessage   `json:"body"`
		}
		if err := json.Unmarshal(b, &s); err != nil {
			f.Fatal(err)
		}
		canonical := map[string]string{}
		for k, v := range s.Header {
			canonical[http.CanonicalHeaderKey(k)] = v
		}
		all = append(all, seed{canonical, s.Body})
	}
	return all
}

// FuzzShape checks that decoding agrees with encoding/json where both say what they do: on values with
// no keys but those of the type, each once.
func FuzzShape(f *testing.F) {
	for _, s := range seeds(f, "github") {
		f.Add([]byte(s.body))
	}
	f.Add([]byte(`{"number": -0, "ref":"\u00e9\ud83d", "commits":[null, {}], "changes":{"base":null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var raw hubPayload
		err := decode(body, hubShape, &raw)
		var tree any
		if json.Unmarshal(body, &tree) != nil {
			return // what is skipped is not validated: err says nothing
		}
		canonical, merr := json.Marshal(only(tree, reflect.TypeFor[hubPayload]()))
		if merr != nil {
			t.Fatal(merr)
		}
		var got, want hubPayload
		gotErr, wantErr := decode(canonical, hubShape, &got), json.Unmarshal(canonical, &want)
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("decode = %v, encoding/json = %v for %s (of the whole: %v)", gotErr, wantErr, canonical, err)
		}
		if gotErr == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("decode = %+v, encoding/json = %+v for %s", got, want, canonical)
		}
	})
}

// only removes from a decoded value the keys that a type does not have.
func only(v any, typ reflect.Type) any {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch v := v.(type) {
	case map[string]any:
		if typ.Kind() != reflect.Struct {
			return v
		}
		kept := map[string]any{}
		for i := range typ.NumField() {
			name := typ.Field(i).Tag.Get("json")
			if member, ok := v[name]; ok {
				kept[name] = only(member, typ.Field(i).Type)
			}
		}
		return kept
	case []any:
		if typ.Kind() == reflect.Slice {
			for i := range v {
				v[i] = only(v[i], typ.Elem())
			}
		}
	}
	return v
}

const fuzzSecret = Secret("a secret of the fuzzers")

// FuzzHexSignature checks that no header is accepted but the one right signature.
func FuzzHexSignature(f *testing.F) {
	sum := hex.EncodeToString(mac(fuzzSecret, []byte("x")))
	f.Add("sha256="+sum, "", "", "", []byte("x"))
	f.Add("sha256=", "", "", "sha1=00", []byte("x"))
	f.Add("", sum, "", "", []byte("x"))
	f.Add("", sum, "00", "", []byte("x"))
	f.Add("", "", sum, "", []byte("x"))
	f.Fuzz(func(t *testing.T, hub, gitea, forgejo, old string, body []byte) {
		s := signed{header: http.Header{"X-Hub-Signature-256": {hub}, "X-Hub-Signature": {old}}, body: body}
		prefixed := func(prefix, value string) string { // a header that is right begins with prefix, which others lack
			rest, ok := strings.CutPrefix(value, prefix)
			if !ok {
				return ""
			}
			return rest
		}
		of := map[string]string{"github": prefixed("sha256=", hub), "bitbucket": prefixed("sha256=", old), "generic": prefixed("sha256=", hub)}
		of["gitea"] = of["github"] // the first header that is there counts, and no other
		if gitea != "" {
			s.header["X-Gitea-Signature"] = []string{gitea}
			of["gitea"] = gitea
		}
		of["forgejo"] = of["gitea"]
		if forgejo != "" {
			s.header["X-Forgejo-Signature"] = []string{forgejo}
			of["forgejo"] = forgejo
		}
		right := hex.EncodeToString(mac(fuzzSecret, body))
		for name, given := range of {
			if got := providers[name].verify(s, fuzzSecret); got != strings.EqualFold(given, right) {
				t.Errorf("%s: %q is accepted: %t, right is %s", name, given, got, right)
			}
			if authentic(providers[name].verify, s, "") {
				t.Errorf("%s: accepted without a secret", name)
			}
		}
	})
}

// FuzzStandardSignature checks that an accepted signature is right, and its time near.
func FuzzStandardSignature(f *testing.F) {
	now := time.Unix(1763726400, 0)
	good := base64.StdEncoding.EncodeToString(mac(fuzzSecret, []byte("1.1763726400."), []byte("x")))
	f.Add("1", "1763726400", "v1,"+good, []byte("x"))
	f.Add("1", "-9223372036854775808", "v1,"+good+" v1,"+good, []byte("x"))
	f.Add("1", "9223372036854775807", "v1,", []byte("x"))
	f.Fuzz(func(t *testing.T, id, stamp, signature string, body []byte) {
		s := signed{now: now, body: body, header: http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {stamp}, standardHeader: {signature}}}
		if authentic(standardSignature, s, "") {
			t.Error("accepted without a secret")
		}
		if !standardSignature(s, fuzzSecret) {
			return
		}
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		right := base64.StdEncoding.EncodeToString(mac(fuzzSecret, []byte(id+"."+stamp+"."), body))
		if err != nil || seconds < now.Unix()-300 || seconds > now.Unix()+300 || !strings.Contains(signature, strings.TrimRight(right, "=")[:42]) {
			t.Errorf("accepted: id %q, time %q, signature %q", id, stamp, signature)
		}
	})
}

// FuzzToken checks that no header or query is accepted that does not hold the secret.
func FuzzToken(f *testing.F) {
	f.Add("Bearer "+string(fuzzSecret), "", "token=a+secret+of+the+fuzzers", "")
	f.Add("Basic "+base64.StdEncoding.EncodeToString([]byte("x:"+string(fuzzSecret))), "x", "token=%", string(fuzzSecret))
	f.Fuzz(func(t *testing.T, authorization, token, query, gitlab string) {
		s := signed{query: query, header: http.Header{"Authorization": {authorization}, "X-Kiln-Token": {token}, "X-Gitlab-Token": {gitlab}}}
		_, coded, _ := strings.Cut(authorization, " ")
		plain, _ := base64.StdEncoding.DecodeString(coded)
		holds := strings.Contains(authorization+"\n"+token+"\n"+string(plain), string(fuzzSecret))
		if headerToken(s, fuzzSecret) && !holds {
			t.Errorf("accepted: Authorization %q, token %q", authorization, token)
		}
		if urlToken(s, fuzzSecret) && !holds && queryToken(query) != string(fuzzSecret) {
			t.Errorf("accepted: query %q", query)
		}
		if gitlabToken(s, fuzzSecret) != (gitlab == string(fuzzSecret)) {
			t.Errorf("GitLab's token %q", gitlab)
		}
		for name, p := range providers {
			if authentic(p.verify, s, "") {
				t.Errorf("%s: accepted without a secret", name)
			}
		}
	})
}

// FuzzRecords has batches read that are damaged, and what was written read back.
func FuzzRecords(f *testing.F) {
	hook := Hook{ID: "h1", Provider: "github", Registry: "registry.example.com"}
	header := http.Header{"X-Github-Event": {"push"}, "Content-Type": {"application/json"}}
	one := appendRecord([]byte{batchFormat}, hook, time.Unix(1, 2), header, []byte(`{"ref":"refs/heads/main"}`))
	f.Add(one)
	f.Add(appendRecord(one, hook, time.Unix(3, 4), nil, nil))
	f.Add(one[:len(one)-1])
	f.Fuzz(func(t *testing.T, batch []byte) {
		all, err := records(batch)
		if err != nil {
			return
		}
		for _, r := range all {
			raw, err := r.body(nil)
			if err != nil {
				continue
			}
			again, err := records(appendRecord([]byte{batchFormat}, r.hook, r.received, r.header, raw))
			if err != nil || len(again) != 1 {
				t.Fatalf("%d records: %v", len(again), err)
			}
			got, err := again[0].body(nil)
			if err != nil || string(got) != string(raw) || again[0].hook.ID != r.hook.ID || !again[0].received.Equal(r.received) {
				t.Errorf("%+v came back as %+v: %v", r, again[0], err)
			}
		}
	})
}

// FuzzContains checks the search for secrets against the plain one.
func FuzzContains(f *testing.F) {
	f.Add([]byte(`{"a":"bBbB B"}`), "bB B")
	f.Add([]byte("aXXaXb"), "XaX")
	f.Add([]byte(""), "x")
	f.Fuzz(func(t *testing.T, body []byte, s string) {
		if s == "" {
			return
		}
		if got, want := contains(body, s), strings.Contains(string(body), s); got != want {
			t.Errorf("contains(%q, %q) = %v", body, s, got)
		}
	})
}
