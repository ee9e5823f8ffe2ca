package worker

import (
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// refusedOptions are what is wrong with the options of a build, known before it is begun.
func refusedOptions(s *taskspec.Step) []finding {
	b := s.Build
	if b == nil {
		return nil
	}
	var list []finding
	check := func(option string, err error) {
		if err != nil {
			list = append(list, finding{true, "build", option + ": " + err.Error()})
		}
	}
	check("context", checkContext(b.Context))
	check("--network", checkNetwork(b.Network))
	_, err := bytesOf(b.ShmSize)
	check("--shm-size", err)
	for _, u := range b.Ulimits {
		if !ulimit.MatchString(u) {
			check("--ulimit "+u, errors.New("want NAME=SOFT[:HARD]"))
		}
	}
	for _, kv := range b.Contexts {
		check("--build-context "+kv.Key, checkNamedContext(kv))
	}
	for _, option := range b.Secrets {
		_, err := parseSecret(option)
		check("--secret", err)
	}
	for _, option := range b.SSH {
		_, err := parseSSH(option)
		check("--ssh", err)
	}
	for _, option := range slices.Concat(b.CacheFrom, b.CacheTo) {
		_, err := parseCache(option)
		check("--cache-from, --cache-to", err)
	}
	for _, option := range b.Output {
		check("--output "+option, checkOutput(option))
	}
	return list
}

func checkContext(location string) error {
	switch {
	case location == "-":
		return errors.New("a task has no standard input to read a context from; use a directory or a URL")
	case location == "/dev/null":
		return errors.New("a build needs a context; an empty directory is one")
	}
	return nil
}

func checkNetwork(mode string) error {
	switch mode {
	case "", "default", "none", "bridge":
		return nil
	case "host":
		return errors.New("the host's network is never given to a build")
	}
	return fmt.Errorf("%q: RUN instructions have a network of their own or none; the networks of the task are for cmd steps", mode)
}

func checkNamedContext(kv taskspec.KeyValue) error {
	if _, err := reference.ParseNormalizedNamed(kv.Key); err != nil {
		return fmt.Errorf("the name: %w", err)
	}
	if image, ok := strings.CutPrefix(kv.Value, imageScheme); ok {
		_, err := parseReference(image)
		return err
	}
	scheme, _, ok := strings.Cut(kv.Value, ":")
	switch {
	case isRemote(kv.Value):
		return nil
	case scheme == "oci-layout":
		return errors.New("an OCI layout is not supported: push it to a registry and write docker-image://")
	case scheme == "target":
		return errors.New("there are no other targets than those of this build")
	case ok && strings.HasPrefix(kv.Value[len(scheme):], "://"):
		return fmt.Errorf("%s:// is not supported; write a directory, docker-image://, https:// or a git URL", scheme)
	}
	return checkContext(kv.Value)
}

// checkOutput accepts what says no more than that the build's image is kept, which it is.
func checkOutput(option string) error {
	fields, err := parseFields(option, "type", "name", "push")
	kind := fields["type"]
	switch {
	case err != nil || !slices.Contains([]string{"image", "docker", "registry"}, kind):
	case kind == "registry" || fields["push"] != "" && fields["push"] != "false":
		return errors.New("publishes nothing here; leave it out, and add a push step with the image")
	case fields["name"] != "":
		return errors.New("the image would not get this name; give it with -t")
	default:
		return nil
	}
	return errors.New("a build's image is kept for the run and published by a push step; files are written by a cmd step")
}

// parseFields reads NAME=VALUE,... as docker does, in which only the given names are known, or all if none is given.
func parseFields(option string, known ...string) (map[string]string, error) {
	list, err := csv.NewReader(strings.NewReader(option)).Read()
	if err != nil {
		return nil, fmt.Errorf("%q: want NAME=VALUE, several with commas between them", clip(option, 200))
	}
	fields := map[string]string{}
	for _, f := range list {
		k, v, ok := strings.Cut(f, "=")
		k = strings.ToLower(strings.TrimSpace(k))
		if !ok || len(known) > 0 && !slices.Contains(known, k) {
			return nil, fmt.Errorf("%q is not supported here; write NAME=VALUE with one of %s", clip(f, 200), strings.Join(known, ", "))
		}
		fields[k] = v
	}
	return fields, nil
}

// A secretOption is a value of --secret or --ssh: a secret's ID, and where its value is. Without either it is
// the run's secret of that name.
type secretOption struct{ id, file, env string }

// parseSecret understands a value of --secret.
func parseSecret(option string) (secretOption, error) {
	fields, err := parseFields(option, "id", "src", "source", "env", "type")
	if err != nil {
		return secretOption{}, err
	}
	s := secretOption{id: fields["id"], file: fields["src"], env: fields["env"]}
	if s.file == "" {
		s.file = fields["source"]
	}
	switch kind := fields["type"]; {
	case s.id == "":
		return s, fmt.Errorf("%q has no id; write id=NAME,src=FILE or id=NAME,env=VARIABLE", clip(option, 200))
	case kind != "" && kind != "file" && kind != "env":
		return s, fmt.Errorf("type=%s is not supported; it is file or env", kind)
	case s.file != "" && s.env != "":
		return s, fmt.Errorf("%s: src and env exclude each other", s.id)
	case kind == "env" && s.env == "":
		s.env, s.file = s.file, ""
		if s.env == "" {
			s.env = s.id
		}
	}
	return s, nil
}

// parseSSH understands a value of --ssh.
func parseSSH(option string) (secretOption, error) {
	id, file, _ := strings.Cut(option, "=")
	switch {
	case id == "":
		return secretOption{}, fmt.Errorf("%q: want default or ID[=KEYFILE]", clip(option, 200))
	case strings.Contains(file, ","):
		return secretOption{}, fmt.Errorf("%s: one key for an ID; write another ID for the next", id)
	}
	return secretOption{id: id, file: file}, nil
}

// buildSecrets returns the secrets and the keys that a build step names, and no others. The run of a single
// build may mount its secret arguments, too.
func (a *attempt) buildSecrets(s *taskspec.Step) (secrets, keys map[string]solve.Secret, err error) {
	secrets, keys = map[string]solve.Secret{}, map[string]solve.Secret{}
	if a.run.Spec.Build != nil {
		for name, value := range a.secrets.Args {
			secrets[name] = solve.Secret{Value: []byte(value)}
		}
	}
	for _, option := range s.Build.Secrets {
		o, err := parseSecret(option)
		if err == nil {
			secrets[o.id], err = a.secretOf(s, o)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("--secret %s: %w", o.id, err)
		}
	}
	for _, option := range s.Build.SSH {
		o, err := parseSSH(option)
		if err == nil {
			keys[o.id], err = a.sshKey(s, o)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("--ssh %s: %w", o.id, err)
		}
	}
	return secrets, keys, nil
}

// secretOf finds the value of a secret: a file of a volume that the step mounts or of the workspace, a
// variable of the step's environment, or the run's secret of the same name. Nothing of the worker's own is
// among them.
func (a *attempt) secretOf(s *taskspec.Step, o secretOption) (solve.Secret, error) {
	switch {
	case o.file != "":
		return a.fileOf(s, s.WorkingDirectory, o.file)
	case o.env != "":
		value, ok := variable(s.Env, o.env)
		if !ok {
			return solve.Secret{}, fmt.Errorf("the step's env has no %s", o.env)
		}
		return solve.Secret{Value: []byte(value)}, nil
	}
	value, ok := a.secrets.Set[o.id]
	if !ok {
		value, ok = variable(s.Env, o.id)
	}
	switch {
	case ok:
		return solve.Secret{Value: []byte(value)}, nil
	case a.run.Spec.Restricted:
		return solve.Secret{}, errors.New("this run is of a pull request from outside of the repository and has no secrets")
	}
	return solve.Secret{}, fmt.Errorf("the run has no secret of this name; give it with --set-secret %s, or name a source", o.id)
}

// sshKey finds a private key as a secret is found, or, where nothing is named, among those of the server.
func (a *attempt) sshKey(s *taskspec.Step, o secretOption) (solve.Secret, error) {
	key, err := a.secretOf(s, o)
	if err == nil || o.file != "" || a.run.Spec.Restricted {
		return key, err
	}
	if own, ok := a.w.SSHKeys[o.id]; ok {
		return solve.Secret{Value: own}, nil
	}
	return key, fmt.Errorf("%w; or the server's operator names a key with kiln serve --ssh-key %s=FILE. An agent of another host cannot be reached", err, o.id)
}

// fileOf finds a file of a volume that the step mounts or of the workspace, if its name is relative from dir.
func (a *attempt) fileOf(s *taskspec.Step, dir, file string) (solve.Secret, error) {
	clean := path.Clean(file)
	if !path.IsAbs(clean) {
		clean = path.Join(dir, clean)
	}
	for _, m := range s.Mounts {
		name, ok := strings.CutPrefix(clean, path.Clean(m.Path)+"/")
		if !ok {
			continue
		}
		if content, ok := volume(a.task, m.Volume)[name]; ok {
			return solve.Secret{Value: slices.Clone(content)}, nil
		}
		return solve.Secret{}, fmt.Errorf("volume %s has no file %s", m.Volume, name)
	}
	p, err := inWorkspace(clean)
	if err != nil {
		return solve.Secret{}, fmt.Errorf("%s is neither in a volume that the step mounts nor in %s", file, workspace)
	}
	return solve.Secret{File: p}, nil
}

// variable returns the last value of a variable of an environment.
func variable(env []string, name string) (value string, ok bool) {
	for _, e := range env {
		if v, found := strings.CutPrefix(e, name+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}

// ulimit is a limit as docker writes it.
var ulimit = regexp.MustCompile(`^[a-z]+=-?[0-9]+(:-?[0-9]+)?$`)

// size is one as docker writes it: b, k, m, g and t, and their long forms.
var size = regexp.MustCompile(`^([0-9]+)([bkmgt]?)(i?b)?$`)

// bytesOf returns a size as docker writes it, zero for an empty one.
func bytesOf(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	m := size.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return 0, fmt.Errorf("%q is no size; write bytes, or 64m or 1g", clip(text, 40))
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := 10 * max(strings.Index("bkmgt", m[2]), 0)
	if m[2] == "" {
		shift = 0
	}
	if err != nil || n == 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no size that can be had", clip(text, 40))
	}
	return n << shift, nil
}
