package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kiln/scheduler"
)

const (
	defaultKeepRuns = keepAge(90 * day)
	defaultKeepLogs = keepAge(30 * day)
	defaultMaxLogs  = size(16 << 30)
)

const (
	day     = 24 * time.Hour
	maxAge  = 100 * 365 * day
	leastMB = 64 // of --max-logs
)

// validateKeep reports what is wrong with how long things are kept. A day is the least: what follows a run,
// such as the status of its commit, is tried again for so long.
func (cfg *serveConfig) validateKeep() error {
	var errs []error
	for _, f := range []struct {
		name string
		age  keepAge
	}{{"keep-runs", cfg.keepRuns}, {"keep-logs", cfg.keepLogs}} {
		if d := time.Duration(f.age); d != 0 && d < day {
			errs = append(errs, fmt.Errorf("--%s %s: want 1d or more, or 0", f.name, f.age.String()))
		}
	}
	if cfg.maxLogs < leastMB<<20 {
		errs = append(errs, fmt.Errorf("--max-logs %s: want %dMiB or more", cfg.maxLogs.String(), leastMB))
	}
	return errors.Join(errs...)
}

// retention removes what is to be kept no longer.
func (n *node) retention() *scheduler.Retention {
	return &scheduler.Retention{Bus: n.bus, Store: n.store, Ended: n.index.Ended, Keep: time.Duration(n.cfg.keepRuns), Log: n.log}
}

// A keepAge is a flag's duration, which may be in days: 90d.
type keepAge time.Duration

// Set implements pflag.Value.
func (a *keepAge) Set(s string) error {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		if n, err = strconv.ParseUint(days, 10, 16); err == nil {
			d = time.Duration(n) * day
		}
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d < 0 || d > maxAge {
		return errors.New("want days or a duration, such as 90d or 36h")
	}
	*a = keepAge(d)
	return nil
}

// String implements pflag.Value.
func (a *keepAge) String() string {
	d := time.Duration(*a)
	if d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// Type implements pflag.Value.
func (a *keepAge) Type() string { return "AGE" }

// A size is a flag's number of bytes: 16GiB, 500MiB.
type size int64

// Set implements pflag.Value.
func (z *size) Set(s string) error {
	for unit, shift := range map[string]uint{"MiB": 20, "GiB": 30} {
		if number, ok := strings.CutSuffix(s, unit); ok {
			if n, err := strconv.ParseUint(number, 10, 24); err == nil {
				*z = size(n << shift)
				return nil
			}
		}
	}
	return errors.New("want a size in MiB or GiB, such as 16GiB")
}

// String implements pflag.Value.
func (z *size) String() string {
	if *z%(1<<30) == 0 {
		return fmt.Sprintf("%dGiB", *z>>30)
	}
	return fmt.Sprintf("%dMiB", *z>>20)
}

// Type implements pflag.Value.
func (z *size) Type() string { return "SIZE" }
