package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// dockerOf returns what serves the docker programs of a step's container, nil if it has none of kiln's. One
// with privileges may have a daemon of its own.
func (a *attempt) dockerOf(s *taskspec.Step) solve.DockerFunc {
	if !s.CallsDocker() || s.Privileged {
		return nil
	}
	return func(ctx context.Context, c solve.DockerCommand) int {
		err := (&scripted{a: a, step: s, DockerCommand: c}).execute(ctx)
		if err == nil {
			return 0
		}
		code := 1
		if ended, ok := errors.AsType[*exited](err); ok {
			if code = ended.code; ended.err == nil {
				return code
			}
		}
		var failure *stepFailure
		if errors.As(err, &failure) {
			err = failure.err
		}
		fmt.Fprintf(c.Stderr, "docker: %s\n", a.clean(err))
		return code
	}
}

// scripted is a docker command that a program calls in the container of a step. It is executed as a step is
// that consists of it, with the directory, the environment and the standard input of the program. Of the
// run's secrets it has none that the program has not.
type scripted struct {
	a    *attempt
	step *taskspec.Step
	solve.DockerCommand
}

func (c *scripted) execute(ctx context.Context) error {
	call, warnings, err := taskspec.ParseDocker(c.Args, c.Env)
	for _, w := range warnings {
		fmt.Fprintf(c.Stderr, "warning: %s\n", w.Message)
	}
	if errs, ok := errors.AsType[taskspec.Errors](err); ok {
		messages := make([]string, len(errs))
		for i, e := range errs {
			messages[i] = e.Message
		}
		return errors.New(strings.Join(messages, "; "))
	}
	switch {
	case err != nil:
		return err
	case call.Build != nil:
		if err := c.build(ctx, call.Build); err != nil || len(call.Push) == 0 {
			return err
		}
		return c.push(ctx, call.Push)
	case call.Push != nil:
		return c.push(ctx, call.Push)
	case call.Run != nil:
		return c.run(ctx, call.Run)
	}
	if call.Docker.PasswordStdin {
		password, err := c.Stdin()
		if err != nil {
			return err
		}
		call.Docker.Password = strings.TrimRight(string(password), "\r\n")
	}
	text, err := c.a.dockerCommand(ctx, call.Docker)
	_, _ = io.WriteString(c.Stdout, text) // if nobody reads it any more ctx ends
	return err
}

// as returns the step that the command would be.
func (c *scripted) as(kind taskspec.Kind) *taskspec.Step {
	s := c.step
	return &taskspec.Step{ID: s.ID, Kind: kind, Env: c.Env, Mounts: s.Mounts, WorkingDirectory: c.Dir, Timeout: s.Timeout, Line: s.Line}
}

// push publishes images, and prints what docker prints of each.
func (c *scripted) push(ctx context.Context, images []string) error {
	s := c.as(taskspec.KindPush)
	s.Push = images
	if why := c.a.skip(s); why != "" {
		fmt.Fprintln(c.Stderr, why)
		return nil
	}
	if err := c.a.push(ctx, s); err != nil {
		return err
	}
	for _, name := range images {
		if built, ok := c.a.images.find(name); ok {
			fmt.Fprintf(c.Stdout, "%s: digest: %s\n", name, built.output.Digest)
		}
	}
	return nil
}

// build builds an image. What BuildKit says is printed, as docker does it without a terminal.
func (c *scripted) build(ctx context.Context, b *taskspec.Build) error {
	s := c.as(taskspec.KindBuild)
	s.Build = b
	text, alone, err := c.dockerfile(b)
	if err != nil {
		return err
	}
	if alone {
		s.WorkingDirectory = workspace
	}
	for _, f := range slices.Concat(unsupported(s), ownSecrets(s)) {
		if f.found {
			return errors.New(f.why)
		}
	}
	req, err := c.a.buildRequest(s)
	if err != nil {
		return err
	}
	if text != nil {
		req.DockerfileInline = text
	}
	if alone {
		req.Remote = &solve.Tree{FS: noFiles{}, Key: "none"}
	}
	log := &plainLog{w: c.Stderr}
	if b.Quiet {
		log.w = io.Discard
	}
	out, err := c.a.makeImage(ctx, s, req, log.add)
	if err != nil {
		return err
	}
	c.a.images.noteScripted(s.ID, *out)
	if err := c.a.buildFiles(ctx, b, c.Dir, *out); err != nil {
		return err
	}
	if b.Quiet {
		fmt.Fprintln(c.Stdout, out.Digest)
	} else {
		fmt.Fprintf(c.Stderr, "built %s %s\n", out.Digest, strings.Join(out.Tags, " "))
	}
	return nil
}

// ownSecrets are the secrets and keys of a build that neither its options nor the environment of the program
// have: a program of a container gets none by its name alone.
func ownSecrets(s *taskspec.Step) (list []finding) {
	for _, option := range s.Build.Secrets {
		o, err := parseSecret(option)
		if _, has := variable(s.Env, o.id); err == nil && o.file == "" && o.env == "" && !has {
			list = append(list, finding{true, "build", fmt.Sprintf("--secret %s: name its source with src=FILE or env=VARIABLE; only a build step has the run's secrets", o.id)})
		}
	}
	for _, option := range s.Build.SSH {
		o, err := parseSSH(option)
		if err == nil && o.file == "" {
			list = append(list, finding{true, "build", fmt.Sprintf("--ssh %s: name the file of a private key, %s=FILE; there is no agent here", o.id, o.id)})
		}
	}
	return list
}

// dockerfile reads the Dockerfile from standard input if the command says so, and reports whether that is all
// that the build has.
func (c *scripted) dockerfile(b *taskspec.Build) (text []byte, alone bool, err error) {
	alone = b.Context == "-"
	switch {
	case alone && b.Dockerfile != "":
		return nil, false, errors.New("with - as the context, the Dockerfile is what standard input has; leave out -f, or write -f - and a directory")
	case !alone && b.Dockerfile != "-":
		return nil, false, nil
	}
	if text, err = c.Stdin(); err != nil {
		return nil, false, fmt.Errorf("the Dockerfile on standard input: %w", err)
	}
	if alone && isArchive(text) {
		return nil, false, errors.New("a tarball cannot be read from standard input; unpack it in " + workspace + " and name the directory")
	}
	b.Dockerfile = ""
	if alone {
		b.Context = "."
	}
	return append([]byte{}, text...), alone, nil
}

// isArchive reports whether data is a tarball, compressed or not, or an archive of another kind: text has no
// zero bytes.
func isArchive(data []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ", "\x28\xb5\x2f\xfd", "PK\x03\x04"} {
		if bytes.HasPrefix(data, []byte(magic)) {
			return true
		}
	}
	return bytes.IndexByte(data, 0) >= 0
}

// noFiles is a tree without files.
type noFiles struct{}

func (noFiles) Walk(context.Context, string, fs.WalkDirFunc) error { return nil }

func (noFiles) Open(p string) (io.ReadCloser, error) {
	return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
}
