package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kiln/internal/auth"
	"kiln/triggers/watch"
)

// serveConfig is the configuration of a server. That of a worker apart is its first part alone.
type serveConfig struct {
	workerConfig
	keys                      string // directory
	lease                     time.Duration
	advertise                 string
	registryHost              string
	aliases                   []string
	blobs, blobsCredentials   string
	maxRuns                   int
	reconcileEvery, pollEvery time.Duration
	relaxed                   bool
	publicURL                 string
	anonymousPull             []string
	tlsCert, tlsKey           string
	allowNotify               []string
	forges                    []string
	keepRuns, keepLogs        keepAge
	maxLogs                   size
	retention                 []string
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
			if _, err := c.settle(cmd, &cfg, cfg.validate); err != nil {
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
	cfg.addExecution(f)
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

// validate reports everything that is wrong with the settings of a server at once.
func (cfg *serveConfig) validate() error {
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
	return errors.Join(append(errs, checkRoles(cfg.roles), cfg.validateOutside(), cfg.validateKeep(), cfg.validateExecution())...)
}

const (
	minLease = 3 * time.Second
	maxLease = 10 * time.Minute
)
