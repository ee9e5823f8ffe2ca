package arch_test

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// layer ranks the packages: one may import only packages of a lower rank. Packages of equal rank do
// not know each other; those of the components meet through NATS.
var layer = map[string]int{
	// The language, the record of a run and the calendar, each by itself.
	"taskspec":      0,
	"internal/run":  0,
	"internal/cron": 0,

	// Pure values: no I/O, no clock, no goroutines.
	"internal/task":       1,
	"internal/graph":      1,
	"internal/dockerfile": 1,

	// What is due, from values alone.
	"triggers/decide": 2,

	// Contracts between components: what is on the wire, what a solver does, what the API says.
	"internal/event":     3,
	"internal/solve":     4,
	"internal/apiclient": 4,

	// What two sides of a build daemon have agreed on.
	"internal/buildkit/peers": 4,

	// Parts of the infrastructure that others of them are made of.
	"internal/buildkit/progress":      5,
	"internal/buildkit/limits":        5,
	"internal/buildkit/shim":          5,
	"internal/buildkit/treefs":        5,
	"internal/netguard":               5,
	"internal/buildkit/daemon/runnet": 5,
	"internal/buildkit/daemon":        6,
	"internal/buildkit/cni":           6,
	"internal/registry/bucket":        6,

	// Infrastructure: each package owns one protocol or one store.
	"internal/auth":               7,
	"internal/bus":                7,
	"internal/store":              7,
	"internal/buildkit":           7,
	"internal/buildkit/supervise": 7,
	"internal/registry":           7,
	"internal/source":             7,
	"internal/source/git":         7,
	"internal/source/archive":     7,
	"internal/secret":             7,
	"internal/forge":              7,

	// Read models of it, and its backup.
	"internal/index":  8,
	"internal/backup": 8,

	// Who has changed what.
	"internal/audit": 8,

	// What triggers are made of.
	"triggers/clock": 8,
	"triggers/watch": 8,
	"triggers/links": 8,

	// Components.
	"webhook":         9,
	"internal/notify": 9,
	"triggers":        9,
	"scheduler":       9,
	"worker":          9,
	"internal/api":    9,
	"internal/web":    9,

	// Programs, which plug the components together, and what only they use.
	"cmd/kiln/internal/metrics": 10,
	"cmd/kiln/internal/render":  10,
	"cmd/kiln/internal/config":  10,
	"cmd/kiln":                  11,
	"internal/bench":            11,
	"internal/bench/stamp":      11,
	"examples":                  11,
	"examples/pull":             11,
	"examples/gitserver":        11,

	// Real servers for tests. Nothing but tests imports them.
	"internal/natstest":     12,
	"internal/registrytest": 12,
	"internal/gittest":      12,
	"internal/solvertest":   12,
	"internal/arch":         12,
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		rank, ok := layer[p.path]
		if !ok {
			t.Errorf("package %q has no layer; give it one in internal/arch/imports_test.go", p.path)
			continue
		}
		for _, to := range p.imports {
			name, ours := within(to)
			if below, known := layer[name]; ours && known && below >= rank {
				t.Errorf("%s (layer %d) must not import %s (layer %d)", p.path, rank, name, below)
			}
		}
	}
}

// pure lists the packages that are values and functions alone, with everything outside the standard
// library that they may import.
var pure = map[string][]string{
	"taskspec":            {"github.com/Masterminds/sprig/v3", "github.com/distribution/reference", "gopkg.in/yaml.v3"},
	"internal/run":        {},
	"internal/event":      {"kiln/internal/run", "kiln/triggers/decide"},
	"triggers/decide":     {"kiln/internal/cron", "kiln/internal/graph", "kiln/internal/task"},
	"internal/cron":       {},
	"triggers/links":      {"kiln/internal/dockerfile", "kiln/internal/event", "kiln/internal/graph", "kiln/internal/run", "kiln/internal/task", "kiln/taskspec"},
	"internal/task":       {"kiln/internal/cron", "kiln/internal/run", "kiln/taskspec", "gopkg.in/yaml.v3"},
	"internal/graph":      {"github.com/distribution/reference"},
	"internal/dockerfile": {"github.com/moby/buildkit/frontend/dockerfile", "github.com/distribution/reference", "github.com/containerd/platforms"},
}

// impure are packages of the standard library that reach outside the process or wait.
var impure = []string{"context", "crypto/rand", "database/sql", "io/ioutil", "log", "math/rand", "math/rand/v2",
	"net", "net/http", "os", "os/exec", "os/signal", "os/user", "plugin", "syscall"}

func TestPurePackagesStayPure(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		allowed, ok := pure[p.path]
		if !ok {
			continue
		}
		for _, to := range p.imports {
			_, ours := within(to)
			external := ours || strings.Contains(strings.Split(to, "/")[0], ".")
			switch {
			case external && !slices.ContainsFunc(allowed, func(a string) bool { return below(to, a) }):
				t.Errorf("%s must not import %s: it may import %q", p.path, to, allowed)
			case !external && slices.Contains(impure, to):
				t.Errorf("%s must not import %s: it is pure, so that what it does depends on its arguments alone", p.path, to)
			}
		}
	}
}

// owners says which packages may import a module. A package that is not named asks one that is.
var owners = map[string][]string{
	// The parser of Dockerfiles and the progress display are BuildKit's own.
	"github.com/moby/buildkit": {"internal/buildkit", "internal/solvertest", "internal/dockerfile", "internal/bench", "cmd/kiln/internal/render"},

	"github.com/containerd/containerd/v2":    {"internal/buildkit"},
	"github.com/hanwen/go-fuse/v2":           {"internal/buildkit/treefs"},
	"github.com/google/nftables":             {"internal/buildkit/daemon/runnet"},
	"github.com/vishvananda/netlink":         {"internal/buildkit/daemon/runnet"},
	"github.com/nats-io/nats-server/v2":      {"internal/bus", "internal/natstest"},
	"github.com/nats-io/nats.go":             {"internal/bus", "internal/store", "internal/index", "internal/natstest", "internal/bench"},
	"modernc.org/sqlite":                     {"internal/registry", "internal/index"},
	"github.com/distribution/distribution":   {"internal/registry"},
	"github.com/aws/aws-sdk-go-v2":           {"internal/registry/bucket"},
	"github.com/aws/smithy-go":               {"internal/registry/bucket"},
	"github.com/johannesboyne/gofakes3":      {"internal/registrytest"},
	"github.com/google/go-containerregistry": {"internal/registry", "internal/source/archive", "worker", "triggers/watch", "internal/bench", "examples/pull"},
	"github.com/go-git/go-git/v5":            {"internal/source", "internal/gittest"},
	"filippo.io/age":                         {"internal/secret"},
	"github.com/spf13/cobra":                 {"cmd/kiln"},
	// Metrics are shown by the program: components count nothing themselves, they call who does.
	"github.com/prometheus/client_golang": {"cmd/kiln/internal/metrics"},
	"gopkg.in/yaml.v3":                    {"taskspec", "internal/task", "cmd/kiln/internal/config"},
	"github.com/Masterminds/sprig/v3":     {"taskspec"},
}

func TestModulesHaveOwners(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, to := range p.imports {
			for module, allowed := range owners {
				if below(to, module) && !slices.ContainsFunc(allowed, func(a string) bool { return below(p.path, a) }) {
					t.Errorf("%s must not import %s: only %s may", p.path, to, strings.Join(allowed, ", "))
				}
			}
		}
	}
}

// below reports whether an import path is dir or lies in it.
func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// TestLayersExist keeps the tables from naming packages that a typing error invented. Those of the
// plan that do not exist yet have nothing to be checked.
func TestLayersExist(t *testing.T) {
	t.Parallel()
	for name := range pure {
		if _, ok := layer[name]; !ok {
			t.Errorf("pure package %q has no layer", name)
		}
	}
	for module, allowed := range owners {
		for _, name := range allowed {
			if _, ok := layer[name]; !ok || path.Clean(name) != name {
				t.Errorf("owner %q of %s has no layer", name, module)
			}
		}
	}
}
