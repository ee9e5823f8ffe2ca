package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/pflag"

	"kiln/internal/apiclient"
	"kiln/internal/buildkit"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/source/git"
	"kiln/taskspec"
	"kiln/worker"
)

// stepConfig says what steps of runs may do on a server.
type stepConfig struct {
	privileged bool
	aliases    []string
	maxLog     int // MiB
	vaults     []string
	sshKeys    map[string]string // files by ID
	logins     []string          // for registries
	purges     []string          // who may purge what
}

// add defines the flags of what executes runs.
func (s *stepConfig) add(f *pflag.FlagSet) {
	f.BoolVar(&s.privileged, "allow-privileged", false, "execute privileged containers of runs that allow them: such a container can take over this host")
	f.StringArrayVar(&s.aliases, "image-alias", nil, "`NAME=IMAGE`: what a cmd step that begins with NAME executes; may be repeated")
	f.StringArrayVar(&s.vaults, "vault", nil, "`HOST=env:PREFIX|file:DIR|store:PREFIX`: where the secrets are that task files name as keyvault: https://HOST/secrets/NAME; may be repeated")
	f.StringToStringVar(&s.sshKeys, "ssh-key", nil, "`ID=FILE`: a private key that builds may use for --ssh ID if they bring none. With a host as ID it also opens the git repositories there that runs reach by ssh without a secret of their own, and with default those of all others; may be repeated")
	f.IntVar(&s.maxLog, "max-log", worker.DefaultMaxLog>>20, "`MiB` of output that are kept of one run; what comes after is dropped, the run goes on")
}

// addServer defines the flags of what decides on behalf of all workers.
func (s *stepConfig) addServer(f *pflag.FlagSet) {
	f.StringArrayVar(&s.logins, "registry-login", nil, "`HOST=USER:SOURCE` with the source of the password as env:VARIABLE, file:PATH or store:SECRET: how runs sign in to a registry that their task has no credential for; may be repeated")
	f.StringArrayVar(&s.purges, "allow-purge", nil, "`TASK[=REPOSITORY]`: a task whose acr purge steps may delete images, of the repositories that the pattern matches (team/*; default all); * is every run; may be repeated")
}

var aliasName = regexp.MustCompile(`^[a-zA-Z0-9]+$`)

// images returns the image aliases of the task language: the usual ones, with those of the operator.
func (s *stepConfig) images() (map[string]string, error) {
	table := maps.Clone(taskspec.DefaultImageAliases)
	var errs []error
	for _, entry := range s.aliases {
		name, image, _ := strings.Cut(entry, "=")
		if !aliasName.MatchString(name) {
			errs = append(errs, fmt.Errorf("--image-alias %q: want NAME=IMAGE, the name of letters and digits only", entry))
		} else if _, err := reference.ParseNormalizedNamed(image); err != nil {
			errs = append(errs, fmt.Errorf("--image-alias %q: %q is no image reference: %w", entry, image, err))
		}
		table[name] = image
	}
	return table, errors.Join(errs...)
}

func (s *stepConfig) validate() error {
	_, err := s.images()
	if s.maxLog < 1 {
		err = errors.Join(err, fmt.Errorf("--max-log %d: want 1 or more", s.maxLog))
	}
	for _, entry := range s.vaults {
		if _, _, _, verr := secret.ParseVault(entry); verr != nil {
			err = errors.Join(err, fmt.Errorf("--vault %w", verr))
		}
	}
	for _, entry := range s.logins {
		_, lerr := parseRegistryLogin(entry)
		err = errors.Join(err, lerr)
	}
	for _, entry := range s.purges {
		task, pattern, narrowed := strings.Cut(entry, "=")
		if task == "" || narrowed && !purgePattern.MatchString(pattern) {
			err = errors.Join(err, fmt.Errorf("--allow-purge %q: want TASK or TASK=REPOSITORY, such as cleanup=team/*", entry))
		}
	}
	_, kerr := s.keys()
	return errors.Join(err, kerr)
}

// purgePattern is a repository, or what several begin with and an asterisk.
var purgePattern = regexp.MustCompile(`^[a-z0-9._/-]*\*?$`)

// purgeGrants returns the patterns of the repositories that a task may purge; runs without a task have an empty
// name.
func (s *stepConfig) purgeGrants(task string) (patterns []string) {
	for _, entry := range s.purges {
		name, pattern, narrowed := strings.Cut(entry, "=")
		if name != "*" && !strings.EqualFold(name, task) {
			continue
		}
		if !narrowed {
			pattern = "*"
		}
		patterns = append(patterns, pattern)
	}
	return patterns
}

// repositoryMatches reports whether a pattern is about a repository.
func repositoryMatches(pattern, repository string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(repository, prefix)
	}
	return repository == pattern
}

// keys reads the private keys that builds may use.
func (s *stepConfig) keys() (map[string][]byte, error) {
	keys := map[string][]byte{}
	for id, file := range s.sshKeys {
		if id == "" || file == "" {
			return nil, fmt.Errorf("--ssh-key %s=%s: want ID=FILE", id, file)
		}
		key, err := readFile(file)
		if err == nil && len(key) > maxSecret {
			err = fmt.Errorf("%s has more than %d bytes", file, maxSecret)
		}
		if err == nil {
			err = buildkit.CheckKey(key)
		}
		if err != nil {
			return nil, fmt.Errorf("--ssh-key %s: %w", id, err)
		}
		keys[id] = key
	}
	return keys, nil
}

// gitKeys are the server's own keys for git repositories.
func (n *node) gitKeys() git.Keys {
	keys, _ := n.cfg.steps.keys() // validated
	return keys
}

// vaults returns what stands for vaults on this server.
func (n *node) vaults() secret.Vaults {
	v := secret.Vaults{}
	for _, entry := range n.cfg.steps.vaults {
		switch host, kind, what, _ := secret.ParseVault(entry); kind { // validated
		case "env":
			v[host] = secret.Env{Prefix: what, Lookup: os.LookupEnv}
		case "file":
			v[host] = secret.Files{Dir: what}
		case "store":
			v[host] = secret.Stored{Prefix: what, Secrets: n.secrets()}
		}
	}
	return v
}

// equip gives a worker what its steps may do.
func (n *node) equip(w *worker.Worker) *worker.Worker {
	w.Images, _ = n.cfg.steps.images() // validated
	w.SSHKeys, _ = n.cfg.steps.keys()  // validated
	w.Vault, w.Purge = n.vaults().Value, n.purgeFor
	if n.registry == nil {
		w.Purge = func(ctx context.Context, r run.Run, p apiclient.Purge) (apiclient.Purged, error) {
			return bus.Ask[apiclient.Purged](ctx, n.bus, event.AskPurge, purgeAsk{Run: r.ID, Purge: p})
		}
	}
	w.Privileged, w.MaxLog = n.cfg.steps.privileged, int64(n.cfg.steps.maxLog)<<20
	return w
}

// planOptions are those of the plan by which a request is checked: the worker's, but that no vault is
// asked. A name is as good as a value there.
func (n *node) planOptions(secrets map[string]string) worker.PlanOptions {
	images, _ := n.cfg.steps.images() // validated
	return worker.PlanOptions{Registry: n.host, Secrets: secrets, Images: images, Privileged: n.cfg.steps.privileged,
		Vault: func(s taskspec.Secret) (string, error) {
			_, name, _, err := n.vaults().Provider(s.KeyVault)
			return name, err
		}}
}
