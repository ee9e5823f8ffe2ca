package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
)

// audited waits until the audit log has a record of something, and returns all of it.
func (g *gate) audited(t *testing.T, what string) []event.Audit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		r := g.kiln(t, g.admin, "audit", "-o", "json", "--top", "1000")
		if r.code != 0 || ctx.Err() != nil {
			t.Fatalf("kiln audit: %+v, want %q", r, what)
		}
		if !strings.Contains(r.out, what) {
			continue
		}
		var list []event.Audit
		for line := range strings.Lines(r.out) {
			var a event.Audit
			must(t, json.Unmarshal([]byte(line), &a))
			list = append(list, a)
		}
		return list
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	all, stop := g.followAudit(t)
	author := g.token(t, "dev", "--role", "author", "--repo", "web/*")
	g.push(t, "web/app:1")
	g.kiln(t, author, "secret", "list")                       // reads
	g.kiln(t, author, "gc")                                   // is denied
	g.do(t, "Bearer "+author, "GET", "/v2/web/app/tags/list") // reads
	g.do(t, "Bearer "+author, "GET", "/v2/db/app/tags/list")  // is denied
	g.do(t, "", "GET", "/v2/web/app/tags/list")               // is asked for a token
	g.do(t, "Bearer kt_wrong", "PUT", "/v2/web/app/manifests/2")
	g.session(t, "wrong", "repository:web/app:pull")
	if r := g.kiln(t, g.admin, "tag", "lock", "web/app:1"); r.code != 0 {
		t.Fatalf("kiln tag lock: %+v", r)
	}
	req := `{"value":"not to be seen"}`
	if status := g.put(t, author, "/api/v1/secrets/web-key", req); status != 200 {
		t.Fatalf("secret: %d", status)
	}
	list := g.audited(t, "secrets/web-key")
	waitFor(t, "the follower to see all", func() bool { return strings.Count(all.String(), "\n") == len(list) })
	stop()
	var lines []string
	for _, a := range list {
		if a.From != "127.0.0.1" || a.Time.IsZero() || strings.HasPrefix(a.Who, "token ") != (a.Token != "") {
			t.Errorf("record %+v", a)
		}
		b, err := json.Marshal([]any{a.Who, a.Role, a.Method, a.What, a.Status, a.Code})
		must(t, err)
		lines = append(lines, string(b))
	}
	want := `["admin","admin","POST","tokens dev",201,""]
["admin","session","PUT","image web/app:1",201,""]
["token dev","author","POST","registry/collect",403,"forbidden"]
["token dev","author","GET","image db/app/tags/list",403,""]
["","","PUT","image web/app:2",401,""]
["","","GET","session",401,""]
["admin","admin","POST","registry/lock web/app:1",200,""]
["token dev","author","PUT","secrets/web-key",200,""]`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("audit log:\n%s\nwant\n%s", got, want)
	}
	for _, c := range []struct {
		has, not string
		args     []string
	}{
		{"secrets/web-key", "registry/lock", []string{"--who", "dev"}}, {"registry/lock", "secrets/web-key", []string{"--what", "LOCK"}},
		{"secrets/web-key", "registry/lock", []string{"--top", "1"}}, {"", "web", []string{"--what", "nothing"}}, {"web/app:2", "lock", []string{"--who", "-"}},
	} {
		r := g.kiln(t, g.admin, append([]string{"audit"}, c.args...)...)
		if r.code != 0 || !strings.Contains(r.out, c.has) || strings.Contains(r.out, c.not) || strings.Contains(r.out, "not to be seen") {
			t.Errorf("kiln audit %q: %+v", c.args, r)
		}
	}
	dev, stop := g.followAudit(t, "--who", "dev", "--top", "1")
	waitFor(t, "the newest record", func() bool { return strings.Contains(dev.String(), "secrets/web-key") })
	g.put(t, g.admin, "/api/v1/secrets/db-key", req)
	g.put(t, author, "/api/v1/secrets/web-other", req)
	waitFor(t, "the next record", func() bool { return strings.Contains(dev.String(), "secrets/web-other") })
	if stop(); strings.Count(dev.String(), "\n") != 2 {
		t.Errorf("followed what one token does:\n%s", dev)
	}
	for _, args := range [][]string{{"--top", "0"}, {"--since", "0s"}, {"--since", "x"}, {"x"}} {
		if r := g.kiln(t, g.admin, append([]string{"audit"}, args...)...); r.code != 2 {
			t.Errorf("kiln audit %q: %+v", args, r)
		}
	}
}

// followAudit follows the log until stop is called, which checks that this is no error.
func (g *gate) followAudit(t *testing.T, args ...string) (out *syncBuffer, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, errs, code := &syncBuffer{}, &syncBuffer{}, make(chan int, 1)
	env := map[string]string{envServer: g.URL, envToken: g.admin, envData: os.DevNull}
	go func() {
		code <- execute(ctx, append([]string{"audit", "-f", "-o", "json"}, args...), environment{In: strings.NewReader(""), Out: out, Err: errs,
			Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	}()
	return out, func() {
		t.Helper()
		cancel()
		if c := <-code; c != 0 {
			t.Errorf("kiln audit -f %q: exit code %d: %s", args, c, errs)
		}
	}
}

// put sends a body with a token and returns the status.
func (g *gate) put(t *testing.T, token, path, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", g.URL+path, strings.NewReader(body))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	must(t, res.Body.Close())
	return res.StatusCode
}
