package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // where it keeps content
	"github.com/sirupsen/logrus"

	"kiln/internal/registrytest"
)

// An exchange is a request that kiln and distribution are asked alike.
type exchange struct {
	method, path string // {upload} is where the last upload is
	body         string
	header       []string
	differs      []string // what kiln answers otherwise, as "status: distribution's -> kiln's"
	why          string
}

// but says that kiln's answer differs from distribution's, and why it has to.
func (x exchange) but(why string, differs ...string) exchange {
	x.why, x.differs = why, differs
	return x
}

// startDistribution serves distribution, the registry that others are compared with.
func startDistribution(t *testing.T) *registrytest.Registry {
	t.Helper()
	logrus.SetOutput(io.Discard)
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  configuration.Parameters{"rootdirectory": t.TempDir()},
		"delete":      configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	config.HTTP.Secret, config.HTTP.RelativeURLs = "secret", true
	config.Catalog.MaxEntries = 100
	config.Validation.Manifests.URLs.Allow = []string{"^https://"}
	app := handlers.NewApp(context.WithoutCancel(t.Context()), config)
	srv := httptest.NewServer(app)
	t.Cleanup(func() {
		srv.Close()
		if err := app.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return &registrytest.Registry{URL: srv.URL}
}

// TestAnswersLikeDistribution compares every answer with that of distribution, in what clients look at.
func TestAnswersLikeDistribution(t *testing.T) {
	t.Parallel()
	ours, theirs := &session{r: registrytest.Start(t)}, &session{r: startDistribution(t)}
	for _, x := range exchanges() {
		a, b := ours.do(t, x), theirs.do(t, x)
		keys := maps.Clone(a)
		maps.Copy(keys, b)
		var differs []string
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			if a[k] != b[k] {
				differs = append(differs, k+": "+b[k]+" -> "+a[k])
			}
		}
		if !slices.Equal(differs, x.differs) {
			t.Errorf("%s %s %q: differs in\n\t%q, want\n\t%q (%s)", x.method, names.Replace(x.path), x.header, differs, x.differs, x.why)
		}
	}
}

// A session is a sequence of requests, which remembers where its upload is.
type session struct {
	r      *registrytest.Registry
	upload string
}

// compared are the headers that clients look at.
var compared = []string{"Docker-Distribution-Api-Version", "Docker-Content-Digest", "Range", "Content-Range", "Link", "ETag", "Allow"}

// do sends the request of x and returns what matters of the answer.
func (s *session) do(t *testing.T, x exchange) map[string]string {
	t.Helper()
	path := x.path
	if rest, ok := strings.CutPrefix(path, "{upload}"); ok {
		if path = s.upload; strings.Contains(path, "?") {
			rest = strings.Replace(rest, "?", "&", 1)
		}
		path += rest
	}
	res, body := call(t, s.r, x.method, path, []byte(x.body), x.header...)
	out := map[string]string{"status": fmt.Sprint(res.StatusCode), "Location": ""}
	for _, k := range compared {
		out[k] = res.Header.Get(k)
	}
	if loc := res.Header.Get("Location"); strings.Contains(loc, "/blobs/uploads/") {
		s.upload = loc
		u, err := url.Parse(loc)
		if err != nil {
			t.Fatal(err)
		}
		out["Location"] = strings.Replace(u.Path, res.Header.Get("Docker-Upload-UUID"), "{id}", 1)
	} else {
		out["Location"] = loc
	}
	switch {
	case res.StatusCode >= 400:
		var e struct{ Errors []struct{ Code string } }
		_ = json.Unmarshal(body, &e) // not every error has a body
		for _, one := range e.Errors {
			out["code"] += one.Code
		}
	case x.method == "GET" || x.method == "HEAD":
		out["Content-Type"], _, _ = strings.Cut(res.Header.Get("Content-Type"), ";")
		out["size"] = fmt.Sprint(res.ContentLength)
		out["body"] = strings.TrimSpace(string(body))
		if json.Valid(body) && x.method == "GET" && out["Content-Type"] == "application/json" {
			delete(out, "size") // of a list, which may end with a new line
		}
	}
	for k, v := range out {
		out[k] = names.Replace(v)
	}
	return out
}

// exchanges returns the exchanges of all workflows.
func exchanges() []exchange {
	return slices.Concat(blobExchanges(), uploadExchanges(), manifestExchanges(), listExchanges(), deleteExchanges(), oddExchanges())
}
