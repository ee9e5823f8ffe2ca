package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"kiln/internal/secret"
)

// workerConfig is the configuration of a process that executes runs, as a server does and a worker apart.
type workerConfig struct {
	data                    string
	roles                   []role
	listen                  string
	nats                    natsConfig
	buildkit                string
	hostNetwork             bool
	runc                    string
	cacheMax, cacheFree     sizeFlag
	cacheKeep               sizeFlag
	name, pool              string // of the worker
	parallel, parallelSteps int
	grace                   time.Duration
	allowSources            []string
	knownHosts              string
	steps                   stepConfig
	logFormat               string
	verbose                 bool
}

// addApart defines the flags of a worker apart.
func (cfg *workerConfig) addApart(f *pflag.FlagSet) {
	cfg.roles = []role{roleWorker}
	f.SortFlags = false
	addConfigFlag(f)
	cfg.nats.addRemote(f)
	cfg.addExecution(f)
	cfg.steps.add(f)
	f.StringVar(&cfg.listen, "listen", "", "address to tell of the worker's health at (default: none)")
	cfg.addLog(f)
}

// addExecution defines the flags of what executes runs.
func (cfg *workerConfig) addExecution(f *pflag.FlagSet) {
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
func (cfg *workerConfig) addLog(f *pflag.FlagSet) {
	f.StringVar(&cfg.logFormat, "log-format", "text", "format of the log on standard error: text or json")
	f.BoolVarP(&cfg.verbose, "verbose", "v", false, "log every state change")
}

// validateApart reports everything that is wrong with the settings of a worker apart at once.
func (cfg *workerConfig) validateApart() error {
	var errs []error
	if !cfg.nats.others() {
		errs = append(errs, errors.New("--nats is missing: it says where the server's messages and state are"))
	}
	for _, v := range cfg.steps.vaults {
		if _, kind, _, err := secret.ParseVault(v); err == nil && kind == "store" {
			errs = append(errs, fmt.Errorf("--vault %s: a worker has not got the key of the server's secrets; use env:PREFIX or file:DIR instead", v))
		}
	}
	return errors.Join(append(errs, cfg.validateExecution())...)
}

// workerName is what a name of a worker or a pool may be.
var workerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// validateExecution reports what is wrong with how runs are executed.
func (cfg *workerConfig) validateExecution() error {
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
func (cfg *workerConfig) stepsAtOnce() int {
	if cfg.parallelSteps > 0 {
		return cfg.parallelSteps
	}
	return max(4, 2*runtime.NumCPU()) + cfg.parallel - 1
}

func (cfg *workerConfig) logger() *slog.Logger {
	opt := &slog.HandlerOptions{Level: slog.LevelWarn}
	if cfg.verbose {
		opt.Level = slog.LevelInfo
	}
	if cfg.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opt))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opt))
}
