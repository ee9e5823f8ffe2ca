package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/source"
)

const buildHelp = `Build an image from a directory or a git repository and publish it.

CONTEXT is a directory, or a repository that the server fetches: URL[#REF[:DIRECTORY]], such as
https://github.com/o/r.git#main:app, where REF is a branch, tag or commit. -f is a path in it then.

Each -t NAME[:TAG] publishes the image in the server's registry; without a tag it gets the run's ID.
Without -t nothing is published and the image's digest is printed. Files that .dockerignore names
are not sent. What is published is printed as registry/repository:tag@digest.`

type buildFlags struct {
	runFlags
	tags       []string
	dockerfile string
	buildArgs  []string
	secretArgs []string
	target     string
	noCache    bool
	noPush     bool
	// reproducible sets all times in the image to the commit's.
	reproducible bool
	options      buildOptions
}

func newBuildCommand(c *cli) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:               "build [flags] CONTEXT",
		Short:             "Build an image from a directory or a git repository and publish it",
		Long:              buildHelp,
		Example:           "  kiln build -t app .\n  kiln build -t app https://github.com/o/r.git#main\n  kiln build -t app:1.2 -t app:latest --build-arg VERSION=1.2 ./app",
		Args:              argument("CONTEXT, the directory or repository to build,"),
		ValidArgsFunction: completeDirectory,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.build(cmd.Context(), f, args[0]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringArrayVarP(&f.tags, "tag", "t", nil, "publish as `NAME[:TAG]`; may be repeated")
	fl.StringVarP(&f.dockerfile, "file", "f", "", "Dockerfile, also outside the context; - reads standard input (default CONTEXT/Dockerfile)")
	fl.StringArrayVar(&f.buildArgs, "build-arg", nil, "set a build argument `K[=V]`; without =V it takes the environment variable K; may be repeated")
	fl.StringArrayVar(&f.secretArgs, "secret-build-arg", nil, "set a secret build argument `K[=V]`; without =V, the safe form, it takes the environment variable K; may be repeated")
	fl.StringVar(&f.target, "target", "", "build this `stage` of the Dockerfile")
	f.addPlatform(cmd, "platforms to build for, `os[/arch[/variant]],...`; several make one index (default the worker's)")
	fl.BoolVar(&f.noCache, "no-cache", false, "execute every instruction again")
	fl.BoolVar(&f.noPush, "no-push", false, "publish nothing")
	fl.BoolVar(&f.reproducible, "reproducible", false, "give everything in the image the time of the commit, or SOURCE_DATE_EPOCH of --build-arg, or 1970")
	f.options.add(cmd)
	f.addRest(cmd)
	return cmd
}

func (c *cli) build(ctx context.Context, f buildFlags, dir string) error {
	if err := f.check(true); err != nil {
		return err
	}
	for _, t := range f.tags {
		if err := checkTag(t); err != nil {
			return err
		}
	}
	remote, err := checkSource(dir)
	if err != nil {
		return err
	}
	args, err := c.keyValues("--build-arg", f.buildArgs)
	if err != nil {
		return err
	}
	secrets, err := c.secrets("--secret-build-arg", f.secretArgs)
	if err != nil {
		return err
	}
	spec := run.BuildSpec{
		Images: f.tags, BuildArgs: args, Target: f.target, NoCache: f.noCache,
		NoPush:       f.noPush || len(f.tags) == 0,
		Reproducible: f.reproducible,
	}
	submit := apiclient.Submit{Spec: run.Spec{Build: &spec, Platform: f.platform, Timeout: f.timeout}}
	local := dir
	if remote {
		local = ""
	}
	if spec.Options, submit.Secrets, err = f.options.options(c, local); err != nil {
		return err
	}
	for name, value := range secrets {
		if submit.Secrets == nil {
			submit.Secrets = map[string]string{}
		}
		submit.Secrets[run.SecretArg+name] = value
	}
	if remote {
		submit.Spec.Context, dir = dir, ""
		err = c.remoteDockerfile(&spec, f.dockerfile)
	} else {
		err = c.findDockerfile(&spec, f.dockerfile, dir)
	}
	if err != nil {
		return err
	}
	return c.start(ctx, job{
		dir:  dir,
		scan: source.ScanOptions{Dockerfile: spec.Dockerfile}, submit: submit, flags: f.runFlags,
	})
}

// findDockerfile sets the Dockerfile of a build of dir: its path if it lies inside, else its content.
func (c *cli) findDockerfile(spec *run.BuildSpec, file, dir string) error {
	if file == "" {
		for _, name := range []string{"Dockerfile", "dockerfile"} { // as BuildKit looks for it
			if isFile(filepath.Join(dir, name)) {
				return nil
			}
		}
		return usagef("-f FILE", "%s: no Dockerfile", dir)
	}
	if file == "-" {
		b, err := readInput("standard input", c.In)
		return inline(spec, b, err)
	}
	path := file
	if !isFile(path) && !filepath.IsAbs(file) {
		path = filepath.Join(dir, file)
	}
	if !isFile(path) {
		return usagef("", "Dockerfile %q: no such file, neither here nor in %s", file, dir)
	}
	if inside, ok := inContext(path, dir); ok {
		spec.Dockerfile = inside
		return nil
	}
	b, err := readFile(path)
	return inline(spec, b, err)
}

// inline makes b the Dockerfile of a build. An empty one would mean the context's.
func inline(spec *run.BuildSpec, b []byte, err error) error {
	if err == nil && len(b) == 0 {
		err = usagef("", "the Dockerfile is empty")
	}
	spec.DockerfileInline = b
	return err
}

// inContext returns the slash path of a file inside a directory, links in the way resolved.
func inContext(path, dir string) (string, bool) {
	for _, resolve := range []func(string) (string, error){filepath.Abs, filepath.EvalSymlinks} {
		var err error
		if path, err = resolve(path); err != nil {
			return "", false
		}
		if dir, err = resolve(dir); err != nil {
			return "", false
		}
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.ToSlash(rel), true
}

// checkTag reports what is wrong with a reference to publish as. It may use the run's values, as in
// app:{{.Run.ID}}, which the server fills in.
func checkTag(s string) error {
	try := "-t NAME[:TAG], such as -t team/app:1.2"
	ref, err := reference.Parse(withoutTemplates(s))
	if err != nil {
		return usagef(try, "-t %q: %w", s, err)
	}
	if _, digested := ref.(reference.Digested); digested {
		return usagef(try, "-t %q: a digest cannot be chosen", s)
	}
	if _, named := ref.(reference.Named); !named {
		return usagef(try, "-t %q: no repository", s)
	}
	return nil
}

// withoutTemplates puts an x in the place of every {{...}}.
func withoutTemplates(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "{{")
		_, after, closed := strings.Cut(rest, "}}")
		if !ok || !closed {
			return s
		}
		s = before + "x" + after
	}
}

// checkContext reports why dir cannot be a context.
func checkContext(dir string) error {
	if isRemote(dir) {
		return usagef("a checkout of it on this host", "context %q: only directories can be read from here", dir)
	}
	switch fi, err := os.Stat(dir); {
	case err != nil:
		return usagef("", "context: %w", err)
	case !fi.IsDir():
		return usagef("its directory, with -f for the file", "context %q: not a directory", dir)
	}
	return nil
}

// maxFile bounds a file that is sent along with a request, in bytes.
const maxFile = 1 << 20

func readInput(name string, r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	switch {
	case err != nil:
		return nil, usagef("", "%s: %w", name, err)
	case len(b) > maxFile:
		return nil, usagef("", "%s: larger than %d bytes", name, maxFile)
	}
	return b, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("", "%w", err)
	}
	defer f.Close()
	return readInput(path, f)
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && !fi.IsDir()
}

// keyValues completes K=V flags: a K without a value takes the environment variable's.
func (c *cli) keyValues(flag string, kvs []string) ([]string, error) {
	out := make([]string, len(kvs))
	for i, kv := range kvs {
		k, _, given := strings.Cut(kv, "=")
		switch v, set := c.Lookup(k); {
		case k == "":
			return nil, usagef(flag+" K=V", "%s %q: no name", flag, kv)
		case given:
			out[i] = kv
		case !set:
			return nil, usagef(fmt.Sprintf("%s %s=VALUE", flag, k), "%s %s: the environment variable %s is not set", flag, k, k)
		default:
			out[i] = k + "=" + v
		}
	}
	return out, nil
}

// runFlags are the flags of every command that starts a run.
type runFlags struct {
	platform string
	timeout  time.Duration
	noWait   bool
	output   outputFlag
}

func (f *runFlags) addPlatform(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&f.platform, "platform", "", usage)
}

func (f *runFlags) addRest(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.noWait, "no-wait", false, "print the run's ID and do not wait for its end")
	fl.DurationVar(&f.timeout, "timeout", 0, "end the run after this time, such as 90s or 1h30m (default the server's)")
	f.addOutput(cmd)
}

func (f *runFlags) addOutput(cmd *cobra.Command) {
	f.output.allowed = []string{"json"}
	cmd.Flags().VarP(&f.output, "output", "o", "print the run as one JSON document")
}

// check reports what is wrong with the flags. Only a build may be for several platforms.
func (f *runFlags) check(build bool) error {
	if f.timeout < 0 {
		return usagef("--timeout 10m", "--timeout %s: must not be negative", f.timeout)
	}
	return checkPlatforms(f.platform, build)
}

// isPlatform reports whether s has the form os[/arch[/variant]].
func isPlatform(s string) bool {
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789_.") != "" {
			return false
		}
	}
	return len(parts) <= 3
}
