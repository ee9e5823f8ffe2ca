package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kiln/internal/auth"
	"kiln/triggers/watch"
)

// serveConfig is the configuration of a server.
type serveConfig struct {
	data                      string
	keys                      string // directory
	roles                     []role
	apart                     bool   // it is kiln worker's
	name, pool                string // of the worker
	lease                     time.Duration
	listen, advertise         string
	registryHost              string
	aliases                   []string
	blobs, blobsCredentials   string
	buildkit                  string
	hostNetwork               bool
	runc                      string
	cacheMax, cacheFree       sizeFlag
	cacheKeep                 sizeFlag
	parallel, parallelSteps   int
	grace                     time.Duration
	maxRuns                   int
	reconcileEvery, pollEvery time.Duration
	allowSources              []string
	knownHosts                string
	relaxed                   bool
	nats                      natsConfig
	publicURL                 string
	anonymousPull             []string
	tlsCert, tlsKey           string
	allowNotify               []string
	forges                    []string
	steps                     stepConfig
	keepRuns, keepLogs        keepAge
	maxLogs                   size
	retention                 []string
	logFormat                 string
	verbose                   bool
}

func newServeCommand(c *cli) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Run the server: API, registry, scheduler, worker and build daemon in one process",
		Long: "Run the server. It keeps everything in one data directory (--data) and listens on one address:\n" +
			"the API under /api/, the image registry under /v2/. It prints one line when it is ready, and stops\n" +
			"softly at SIGTERM or Ctrl-C: runs in hand get the time of --grace, then they are handed back and\n" +
			"go on when a server is started again.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := c.settle(cmd, &cfg); err != nil {
				return err
			}
			return c.serve(cmd.Context(), cfg)
		},
	}
	cfg.add(cmd.Flags())
	return cmd
}

// add defines the flags of a server.
func (cfg *serveConfig) add(f *pflag.FlagSet) {
	cfg.keepRuns, cfg.keepLogs, cfg.maxLogs = defaultKeepRuns, defaultKeepLogs, defaultMaxLogs
	f.SortFlags = false
	f.StringSliceVar(&cfg.roles, "role", allRoles, "what this process does of what a server does: `api,triggers,scheduler,registry,worker`")
	addConfigFlag(f)
	f.StringVar(&cfg.listen, "listen", "127.0.0.1:7070", "address to listen on")
	f.StringVar(&cfg.advertise, "advertise", "", "`URL` at which the server's other processes reach this one (default the address listened on)")
	f.StringVar(&cfg.keys, "keys", "", "`DIR` with the keys that the processes of a server share, made there if there are none (default the data directory)")
	f.StringVar(&cfg.tlsCert, "tls-cert", "", "`FILE` with the server's certificate and those of its authorities, in PEM: the server speaks HTTPS then")
	f.StringVar(&cfg.tlsKey, "tls-key", "", "`FILE` with the key of the certificate, in PEM")
	f.StringVar(&cfg.registryHost, "registry-host", "", "canonical name of the registry in image references (default the address listened on)")
	f.StringSliceVar(&cfg.aliases, "registry-alias", nil, "another name of the registry in image references, beside localhost and 127.0.0.1 with the port")
	f.StringVar(&cfg.blobs, "blobs", "", "keep large blobs of the registry in S3-compatible storage: `s3://BUCKET[/PREFIX][?endpoint=URL][&region=REGION]` (default files in the data directory)")
	f.StringVar(&cfg.blobsCredentials, "blobs-credentials", "", "file with the credentials of --blobs, as Amazon's tools write it (default from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
	cfg.addWorker(f)
	f.DurationVar(&cfg.lease, "lease", 15*time.Second, "how long a worker that is not heard of is taken to be alive")
	f.IntVar(&cfg.maxRuns, "max-runs", 0, "runs executed at once on all workers together; 0 means as many as they take")
	f.DurationVar(&cfg.reconcileEvery, "reconcile-every", 5*time.Minute, "how often repositories and images are compared with what is known, in case an event was lost")
	f.DurationVar(&cfg.pollEvery, "poll-every", watch.DefaultEvery, "how often base images of other registries are asked about")
	f.BoolVar(&cfg.relaxed, "relaxed-sync", false, "acknowledge before the disk has the data: faster on slow disks; a power loss may take the last two minutes")
	cfg.nats.add(f)
	f.StringVar(&cfg.publicURL, "public-url", "", "address that forges and people reach the server at, for hooks and for links to runs, such as https://kiln.example.com (default for hooks the one that a request was sent to)")
	f.StringSliceVar(&cfg.anonymousPull, "anonymous-pull", nil, "`PREFIX` of repositories that everybody may pull from without a token: team/ or team, or '*' for all; may be repeated")
	f.StringSliceVar(&cfg.forges, "forge", nil, "`HOST=github|gitlab|gitea|forgejo`: what forge a host is, for the status of commits; may be repeated")
	f.StringSliceVar(&cfg.allowNotify, "allow-notify", nil, "`HOST|CIDR` that notifications may go to though it is not public; may be repeated")
	cfg.steps.add(f)
	cfg.steps.addServer(f)
	f.Var(&cfg.keepRuns, "keep-runs", "how long runs are kept after their end, with what is left of their logs; 0 means for ever")
	f.Var(&cfg.keepLogs, "keep-logs", "how long logs are kept; 0 means as long as there is room")
	f.Var(&cfg.maxLogs, "max-logs", "how much all logs together take; the oldest go first")
	f.StringArrayVar(&cfg.retention, "retention", nil, "`PURGE` to do every hour, written as the flags of kiln purge: '--filter app:^pr- --ago 30d --untagged'; may be repeated")
	cfg.addLog(f)
}

// addWorker defines the flags of what executes runs.
func (cfg *serveConfig) addWorker(f *pflag.FlagSet) {
	f.StringVar(&cfg.buildkit, "buildkit", "", "address of a BuildKit daemon to use instead of an own one: unix:///path or tcp://host:port")
	f.BoolVar(&cfg.hostNetwork, "buildkit-host-network", false, "accept a --buildkit daemon whose containers use the host's network: runs are not isolated from it")
	f.StringVar(&cfg.runc, "runc", "runc", "the runc program that the own build daemon uses")
	f.Var(&cfg.cacheMax, "cache-max", "largest build cache of the own build daemon, such as 50GB (default a part of the disk)")
	f.Var(&cfg.cacheFree, "cache-min-free", "space that the build cache leaves free on its disk (default a part of the disk)")
	f.Var(&cfg.cacheKeep, "cache-keep", "build cache that is kept though the disk is fuller than that (default a part of the disk)")
	f.StringVar(&cfg.name, "name", "", "name of the worker, which no other worker has (default made of the host's)")
	f.StringVar(&cfg.pool, "pool", "default", "pool of workers that it belongs to")
	f.IntVar(&cfg.parallel, "parallel", max(2, runtime.NumCPU()), "runs executed at once")
	f.IntVar(&cfg.parallelSteps, "parallel-steps", 0, "build and cmd steps of all runs executed at once, services not counted (default two per processor and at least four, and one for each further run)")
	f.DurationVar(&cfg.grace, "grace", 10*time.Second, "time that runs in hand get at a soft stop")
	f.StringSliceVar(&cfg.allowSources, "allow-source", nil, "`HOST|CIDR` that sources may be at though it is not public, also by http://; may be repeated")
	f.StringVar(&cfg.knownHosts, "ssh-known-hosts", "", "file with the host keys of git servers that are reached by ssh")
}

// addLog defines the flags of the log.
func (cfg *serveConfig) addLog(f *pflag.FlagSet) {
	f.StringVar(&cfg.logFormat, "log-format", "text", "format of the log on standard error: text or json")
	f.BoolVarP(&cfg.verbose, "verbose", "v", false, "log every state change")
}

// absolute makes paths independent of the working directory: the client and the build daemon use them too.
func (cfg *serveConfig) absolute() error {
	var errs []error
	for _, path := range []*string{&cfg.tlsCert, &cfg.tlsKey} {
		if *path != "" {
			var err error
			*path, err = filepath.Abs(*path)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// validate reports everything that is wrong at once.
func (cfg *serveConfig) validate() error {
	if cfg.apart {
		return cfg.validateApart()
	}
	var errs []error
	if _, _, err := net.SplitHostPort(cfg.listen); err != nil {
		errs = append(errs, fmt.Errorf("--listen %q: want HOST:PORT, such as 127.0.0.1:7070", cfg.listen))
	}
	if u, err := url.Parse(cfg.advertise); cfg.advertise != "" && (err != nil || u.Host == "" || u.Scheme != cfg.scheme() || strings.Trim(u.Path, "/") != "") {
		errs = append(errs, fmt.Errorf("--advertise %q: want %s://HOST:PORT", cfg.advertise, cfg.scheme()))
	}
	if (cfg.tlsCert == "") != (cfg.tlsKey == "") {
		errs = append(errs, errors.New("--tls-cert and --tls-key are given together"))
	}
	if _, err := cfg.bucket(); err != nil {
		errs = append(errs, err)
	}
	if cfg.maxRuns < 0 {
		errs = append(errs, fmt.Errorf("--max-runs %d: must not be negative", cfg.maxRuns))
	}
	if cfg.reconcileEvery < time.Second || cfg.pollEvery < time.Second {
		errs = append(errs, fmt.Errorf("--reconcile-every %s, --poll-every %s: want a second or more", cfg.reconcileEvery, cfg.pollEvery))
	}
	if cfg.lease < minLease || cfg.lease > maxLease {
		errs = append(errs, fmt.Errorf("--lease %s: want %s to %s", cfg.lease, minLease, maxLease))
	}
	if _, err := auth.AnonymousPull(cfg.anonymousPull); err != nil {
		errs = append(errs, fmt.Errorf("--anonymous-pull: %w", err))
	}
	for _, s := range cfg.retention {
		if _, err := parseRetention(s); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, checkRoles(cfg.roles), cfg.validateOutside(), cfg.validateKeep(), cfg.validateWorker())...)
}

const (
	minLease = 3 * time.Second
	maxLease = 10 * time.Minute
)

// workerName is what a name of a worker or a pool may be.
var workerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// validateWorker reports what is wrong with what a worker has, too.
func (cfg *serveConfig) validateWorker() error {
	var errs []error
	if cfg.cacheMax > 0 && cfg.cacheKeep > cfg.cacheMax {
		errs = append(errs, fmt.Errorf("--cache-keep %s: must not be more than --cache-max %s", &cfg.cacheKeep, &cfg.cacheMax))
	}
	if cfg.parallel < 1 || cfg.parallel > 256 {
		errs = append(errs, fmt.Errorf("--parallel %d: want 1 to 256", cfg.parallel))
	}
	if cfg.parallelSteps != 0 && cfg.parallelSteps < cfg.parallel {
		errs = append(errs, fmt.Errorf("--parallel-steps %d: want at least one for each of the %d runs of --parallel", cfg.parallelSteps, cfg.parallel))
	}
	if cfg.grace < 0 {
		errs = append(errs, fmt.Errorf("--grace %s: must not be negative", cfg.grace))
	}
	if cfg.logFormat != "text" && cfg.logFormat != "json" {
		errs = append(errs, fmt.Errorf("--log-format %q: want text or json", cfg.logFormat))
	}
	if cfg.buildkit != "" && !strings.HasPrefix(cfg.buildkit, "unix://") && !strings.HasPrefix(cfg.buildkit, "tcp://") {
		errs = append(errs, fmt.Errorf("--buildkit %q: want unix:///path or tcp://host:port", cfg.buildkit))
	}
	for _, f := range []struct{ flag, value string }{{"name", cfg.name}, {"pool", cfg.pool}} {
		if !workerName.MatchString(f.value) && !(f.flag == "name" && f.value == "") {
			errs = append(errs, fmt.Errorf("--%s %q: want letters, digits, dots and dashes, 63 at most", f.flag, f.value))
		}
	}
	if _, err := parseSources(cfg.allowSources); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, cfg.nats.validate(), cfg.steps.validate())...)
}

// stepsAtOnce is how many steps are executed at once. One for each run that is executed is always kept free.
func (cfg *serveConfig) stepsAtOnce() int {
	if cfg.parallelSteps > 0 {
		return cfg.parallelSteps
	}
	return max(4, 2*runtime.NumCPU()) + cfg.parallel - 1
}

func (cfg *serveConfig) logger() *slog.Logger {
	opt := &slog.HandlerOptions{Level: slog.LevelWarn}
	if cfg.verbose {
		opt.Level = slog.LevelInfo
	}
	if cfg.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opt))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opt))
}
