package taskspec

import (
	"path"
	"slices"
	"strings"
)

// finishBuild understands the build string of a step.
func (p *parser) finishBuild(s *rawStep) {
	at := s.at(s.build.node)
	w, flags, contexts, err := parseCommand(&buildFlags, s.build.text, 0, true)
	if err != nil {
		p.warnWords(at, "build", s.build.text, w)
		p.commandError(at, "build", &buildFlags, s.build.text, err)
		s.Build = &Build{Args: w.list, Context: "."}
		return
	}
	p.warnWords(at, "build", s.build.text, w)
	if p.nodes += len(w.list); p.nodes >= maxNodes {
		p.errorf(at, "build", "the commands of the task have too many words; with its YAML nodes they are more than %d", maxNodes)
		return
	}
	s.Build = p.build(at, w.list, flags, contexts, s.Env)
	p.outsideFile(at, s, "iidfile", &s.Build.IIDFile)
	p.outsideFile(at, s, "metadata-file", &s.Build.MetadataFile)
	s.Build.Cache = strings.EqualFold(s.cache.text, "enabled")
}

// outsideFile warns of a file that nobody would see, and clears it.
func (p *parser) outsideFile(at place, s *rawStep, option string, file *string) {
	full := path.Clean(*file)
	if !path.IsAbs(full) {
		full = path.Join(s.WorkingDirectory, full)
	}
	if *file != "" && (full == workspace || !inside(full, workspace)) {
		p.warnf(at, "build", "--%s %s has no effect here: only files in %s are left after a build", option, p.clip(*file), workspace)
		*file = ""
	}
}

// ParseBuild understands the arguments of a docker build command, in an environment of K=V entries. The
// error is an [Errors].
func ParseBuild(args, env []string) (*Build, error) {
	p := newParser(nil, &Options{})
	flags, contexts, err := buildFlags.parse(args, true)
	if err != nil {
		p.fail("%v", err)
		return nil, p.err()
	}
	b := p.build(place{}, args, flags, contexts, env)
	if p.failed() {
		return nil, p.err()
	}
	return b, nil
}

// build makes a Build of a command line that has been split into options and contexts.
func (p *parser) build(at place, args []string, flags []option, contexts, env []string) *Build {
	b := &Build{Args: args, Context: "."}
	switch len(contexts) {
	case 0:
	default:
		p.refuse(at, "build", "docker build takes one context, this has %d: %s", len(contexts), p.quoteWords(contexts))
		fallthrough
	case 1:
		b.Context = contexts[len(contexts)-1]
	}
	for _, f := range flags {
		p.buildFlag(at, b, f)
	}
	b.resolveArgs(env)
	return b
}

// buildFlag applies one option to b.
func (p *parser) buildFlag(at place, b *Build, f option) {
	switch f.name {
	case "tag":
		if tag := p.reference(at, "build", f.value); !slices.Contains(b.Tags, tag) {
			b.Tags = append(b.Tags, tag)
		}
	case "file":
		b.Dockerfile = f.value
	case "build-arg":
		b.BuildArgs = append(b.BuildArgs, keyValue(f.value))
	case "build-context":
		kv := keyValue(f.value)
		if kv.Bare || kv.Key == "" || kv.Value == "" {
			p.refuse(at, "build", "--build-context is written NAME=PATH, not %q", p.clip(f.value))
		}
		b.Contexts = append(b.Contexts, kv)
	case "target":
		b.Target = f.value
	case "platform":
		b.Platforms = append(b.Platforms, strings.Split(f.value, ",")...)
	case "label":
		b.Labels = append(b.Labels, keyValue(f.value))
	case "annotation":
		b.Annotation = append(b.Annotation, keyValue(f.value))
	case "no-cache":
		b.NoCache = f.value == "true"
	case "pull":
		b.Pull = f.value == "true"
	case "push":
		if f.value == "true" {
			p.refuse(at, "build", "--push publishes nothing here; leave it out, and add a push step with the image")
		}
	case "network":
		b.Network = f.value
	case "shm-size":
		b.ShmSize = f.value
	case "provenance":
		b.Provenance = f.value
	case "iidfile":
		b.IIDFile = f.value
	case "metadata-file":
		b.MetadataFile = f.value
	case "sbom":
		b.SBOM = f.value
	case "isolation":
		if f.value != "default" {
			p.warnf(at, "build", "--isolation has no effect here: it is for Windows")
		}
	case "quiet":
		b.Quiet = f.value == "true"
	case "rm", "progress", "load": // nothing to be done differently
	default:
		if list := b.list(f.name); list != nil {
			*list = append(*list, f.value)
			return
		}
		p.warnf(at, "build", "--%s has no effect here", f.name)
	}
}

// list returns the field of a repeatable option whose values are kept as written.
func (b *Build) list(name string) *[]string {
	switch name {
	case "add-host":
		return &b.AddHosts
	case "secret":
		return &b.Secrets
	case "ssh":
		return &b.SSH
	case "cache-from":
		return &b.CacheFrom
	case "cache-to":
		return &b.CacheTo
	case "ulimit":
		return &b.Ulimits
	case "output":
		return &b.Output
	case "attest":
		return &b.Attest
	case "no-cache-filter":
		return &b.NoCacheFilter
	}
	return nil
}

// resolveArgs gives build arguments without a value that of the step's environment, if it has one.
func (b *Build) resolveArgs(env []string) {
	for i, arg := range b.BuildArgs {
		if !arg.Bare {
			continue
		}
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, arg.Key+"="); ok {
				b.BuildArgs[i] = KeyValue{Key: arg.Key, Value: v}
			}
		}
	}
}

func keyValue(s string) KeyValue {
	k, v, ok := strings.Cut(s, "=")
	return KeyValue{Key: k, Value: v, Bare: !ok}
}

// warnWords warns of what a shell would have expanded.
func (p *parser) warnWords(at place, property, s string, w words) {
	if len(w.unset) == 0 && !w.globs {
		return
	}
	if hidden := p.redact(s); hidden != s {
		w, _ = splitWords(hidden)
	}
	for _, name := range w.unset {
		if _, predefined := runAliases[name]; predefined && p.aliases == nil {
			p.warnf(at, property, "$%s expands to nothing, because aliases are off; write version: v1.1.0 to turn them on", name)
			continue
		}
		if p.aliases != nil && p.aliases.directive == '$' {
			if _, ok := p.aliases.lookup(name); ok {
				p.warnf(at, property, "$%s expands to nothing here: aliases are not replaced in the values of aliases", name)
				continue
			}
		}
		p.warnf(at, property, "$%s is no alias and expands to nothing; put it in single quotes to keep it for a shell in the image", clip(name))
	}
	if w.globs {
		p.warnf(at, property, "the unquoted * stays as it is, because no shell runs on the worker")
	}
}
