// Command bench measures kiln beside its peers, as whole commands on one machine.
//
// Each program starts the servers that it needs in a temporary directory, lets the sides take turns,
// and compares medians after a warm-up. The sides have contents of their own, so that none profits
// from another's cache, and every image is looked up in its registry after the clock has stopped: a
// side that fails or skips work ends the program with an error. Figures depend on the machine and on
// what else it does, so they come with the load and the time of an fsync; the ratios are what counts.
//
// It needs root, runc, a static /bin/busybox, git, and of Debian docker-registry and docker.io, and leaves nothing behind
// but the programs it compiled, in the user's cache directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A program is one measurement.
type program struct {
	name  string
	about string
	limit time.Duration // it is given up after this long
	run   func(context.Context, *lab) ([]result, error)
}

var programs = []program{
	{"build-cached-embedded", "an unchanged context, kiln as it comes beside buildctl, buildkitd and docker-registry", 5 * time.Minute, cachedEmbedded},
	{"build-changed-embedded", "the same with one changed COPY layer", 5 * time.Minute, changedEmbedded},
	{"build-cached-stock", "an unchanged context, kiln and buildctl on the same stock buildkitd", 5 * time.Minute, cachedStock},
	{"build-changed-stock", "the same with one changed COPY layer", 5 * time.Minute, changedStock},
	{"three-steps", "build, test and push of one changed layer, beside scripts of buildctl and of docker", 10 * time.Minute, threeSteps},
	{"workspace", "an uploaded source of 50,000 files until a cmd step that works on it has started", 10 * time.Minute, workspaceUploaded},
	{"workspace-git", "the same for a commit of a git repository", 10 * time.Minute, workspaceGit},
	{"cmd-step", "a cmd step that does nothing, beside a container of BuildKit's own client", 3 * time.Minute, cmdStep},
	{"overhead", "what kiln adds before and after the solve of a run", 3 * time.Minute, overhead},
	{"idle", "memory and processor time of an idle server with its build daemon", 6 * time.Minute, idle},
	{"logs", "from a line printed in a container to a follower of its log", 5 * time.Minute, logs},
	{"webhook", "deliveries of signed pushes to a hook, beside a handler that only checks the signature", 5 * time.Minute, intake},
	{"push-to-tag", "a signed push webhook until the image has its tag, beside buildctl on the same stock buildkitd", 5 * time.Minute, pushToTag},
	{"git-context", "one changed file of a large git repository until the image has its tag, beside buildctl with a git URL", 10 * time.Minute, gitContexts(onDisk)},
	{"git-context-tmpfs", "the same with the root of the build daemon in memory", 10 * time.Minute, gitContexts(inMemory)},
	{"git-context-100k", "the same with ten times as many files", 20 * time.Minute, gitContexts(manyFiles)},
	{"dispatch", "an image resolved to its run begun by an idle worker", 5 * time.Minute, dispatch},
	{"workers", "builds that sleep on three workers, beside one worker", 10 * time.Minute, fleetThroughput},
	{"slots", "a slot that becomes free until the next run's first step has started, with 1,000 runs queued", 10 * time.Minute, slots},
	{"lost-worker", "a worker killed until another one has its run", 5 * time.Minute, lostWorker},
	{"storm", "one base image that 10,000 tasks are built on", 10 * time.Minute, storm},
	{"timers", "10,000 timers, of which 1,000 go off in one minute", 10 * time.Minute, timers},
	{"history", "a server with 100,000 runs and 10,000 tasks", 15 * time.Minute, history},
	{"registry-push", "small images and some of ten layers, pushed and pulled, beside docker-registry and crane's registry", 5 * time.Minute, registryPush},
	{"registry-large", "a layer of 500 MB, pushed and pulled, beside the same", 10 * time.Minute, registryLarge},
	{"registry-head", "a tag resolved, one after the other and by 8 connections, beside the same", 5 * time.Minute, registryHead},
	{"registry-lists", "what is asked of a repository of 100,000 manifests and 10,000 tags", 10 * time.Minute, registryLists},
	{"registry-gc", "pushes of 4 clients while 30,000 blobs are collected, and without that", 10 * time.Minute, registryGC},
	{"trace", "where the time of a cached build goes; for orientation", 3 * time.Minute, trace},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	n      int
	dir    string
	kiln   string
	json   string
	strict bool
	names  []string
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.n, "n", 15, "measured `rounds` of each side, at least 15 for figures to quote")
	f.StringVar(&o.dir, "dir", os.TempDir(), "measure on the disk of this `directory`")
	f.StringVar(&o.kiln, "kiln", "", "measure this kiln `program` instead of the one in the tree")
	f.StringVar(&o.json, "json", "", "also write the results as JSON to this `file` (- for standard output)")
	f.BoolVar(&o.strict, "strict", false, "exit with 1 if a number that must be met is missed")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: bench [flags] [program...]\n\nPrograms (all of them by default):")
		for _, p := range programs {
			fmt.Fprintf(f.Output(), "  %-24s %s\n", p.name, p.about)
		}
		fmt.Fprintln(f.Output(), "\nFlags:")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.n < 1 || o.n > 1000 {
		return o, fmt.Errorf("-n %d: want 1 to 1000", o.n)
	}
	o.names = f.Args()
	for _, name := range o.names {
		if !slices.ContainsFunc(programs, func(p program) bool { return p.name == name }) {
			return o, fmt.Errorf("no program %q; see bench -h", name)
		}
	}
	return o, nil
}

// bench executes the chosen programs one after the other and prints what they found.
func bench(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	bins, err := compile(ctx, o.kiln)
	if err != nil {
		return err
	}
	var all []result
	var errs []error
	for _, p := range programs {
		if len(o.names) > 0 && !slices.Contains(o.names, p.name) {
			continue
		}
		results, err := measure(ctx, p, o, bins)
		all = append(all, results...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	printTable(os.Stdout, all)
	if o.json != "" {
		errs = append(errs, writeJSON(o.json, all))
	}
	if missed := missed(all); o.strict && len(missed) > 0 {
		errs = append(errs, fmt.Errorf("missed: %s", strings.Join(missed, ", ")))
	}
	return errors.Join(errs...)
}

// measure executes one program in a directory of its own, and notes the conditions it met.
func measure(ctx context.Context, p program, o options, bins binaries) (results []result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("took longer than %s", p.limit))
	defer cancel()
	fmt.Fprintf(os.Stderr, "bench: %s: %s\n", p.name, p.about)
	l, err := newLab(o, bins)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	before, err := conditionsAt(l.dir)
	if err != nil {
		return nil, err
	}
	results, err = p.run(ctx, l)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return nil, err
	}
	after, err := conditionsAt(l.dir)
	if err != nil {
		return nil, err
	}
	for i := range results {
		r := &results[i]
		r.Program, r.Before, r.After = p.name, before, after
		r.Must += float64(r.Fsyncs) * min(before.Fsync, after.Fsync)
		fmt.Fprintf(os.Stderr, "bench: %s\n", *r)
	}
	return results, nil
}
