package buildkit_test

import (
	"context"
	"fmt"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/event"
	"kiln/internal/solve"
)

func TestLatency(t *testing.T) {
	if os.Getenv("LAT") == "" {
		return
	}
	st := startStock(t)
	e := newEnvAt(t, st.address)
	cpu := func() time.Duration {
		var ru syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", st.cmd.Process.Pid))
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		u, _ := strconv.Atoi(f[11])
		k, _ := strconv.Atoi(f[12])
		return time.Duration(ru.Utime.Nano()+ru.Stime.Nano()) + time.Duration(u+k)*10*time.Millisecond
	}
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nCOPY a.txt /a\nRUN echo hi > /b\n", "a.txt": "a"})
	s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "lat"})
	raw, err := client.New(t.Context(), e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	plain := func(internal bool, mods ...func(*client.SolveOpt)) func() {
		return func() {
			opt := client.SolveOpt{
				Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, Internal: internal,
				LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src}, SharedKey: "raw",
				Exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": e.registry + "/staging/x", "push": "true", "push-by-digest": "true", "name-canonical": "true", "oci-mediatypes": "true"}}},
			}
			for _, m := range mods {
				m(&opt)
			}
			_, err := raw.Solve(t.Context(), nil, opt, nil)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	ours := func() {
		if _, err := s.Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
	}
	_ = func() {
		if _, err := s.Run(t.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		for _, c := range []struct {
			name string
			f    func()
		}{{"ours", ours}, {"plain", plain(false)}, {"plain internal", plain(true)},
			{"+policy", plain(true, func(o *client.SolveOpt) {
				o.SourcePolicyProvider = policysession.NewPolicyProvider(func(context.Context, *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
					return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
				})
			})},
			{"+secrets", plain(true, func(o *client.SolveOpt) { o.Session = []session.Attachable{secretsprovider.FromMap(nil)} })},
			{"+full", plain(true, func(o *client.SolveOpt) {
				o.FrontendAttrs["filename"] = "Dockerfile"
				o.Exports[0].Attrs["registry.insecure"] = "true"
			})},
		} {
			for range 3 {
				c.f()
			}
			var d []time.Duration
			c0 := cpu()
			for range 40 {
				b := time.Now()
				c.f()
				d = append(d, time.Since(b))
			}
			slices.Sort(d)
			t.Logf("round %d %-15s median %v p10 %v p90 %v cpu %v", round, c.name, d[20], d[4], d[36], (cpu()-c0)/40)
		}
	}
	var d []time.Duration
	for range 10 {
		b := time.Now()
		s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "lat"})
		if _, err := s.Run(t.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
		first := time.Since(b)
		b = time.Now()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Log("first cmd", first, "close", time.Since(b))
		d = append(d, first)
	}
}
