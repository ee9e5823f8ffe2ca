package run

import "strings"

// A Reference is an image in parts, as ACR's reports of dependencies have it.
type Reference struct {
	Registry   string `json:"registry,omitempty"` // empty for a name that only the run knows
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     string `json:"digest,omitempty"`
	Reference  string `json:"reference"` // all of it
}

// A Git is the state of the repository that an image was built from.
type Git struct {
	Revision string `json:"git-head-revision,omitempty"`
}

// A Dependency tells what an image of a run was made from. Field names are those of ACR.
type Dependency struct {
	Image *Reference `json:"image"` // nil for an image without a name
	// Runtime is the image that it is based on, nil if that is none. One that the run has built itself is
	// not shown, but what that is based on.
	Runtime *Reference `json:"runtime-dependency"`
	// Buildtime are the other images that it was made with.
	Buildtime []Reference `json:"buildtime-dependency"`
	Git       Git         `json:"git"`
}

// Dependencies returns what the images that r has built were made from: one for each name of an image, in
// the order of the steps.
func (r *Run) Dependencies() []Dependency {
	outputs := r.outputs()
	var all []Dependency
	for _, s := range r.Steps {
		if s.State != StepSucceeded {
			continue
		}
		for _, out := range s.Outputs() {
			d := Dependency{Git: Git{Revision: r.Cause.Commit}}
			d.Runtime, d.Buildtime = basesOf(out, outputs)
			if len(out.Tags) == 0 {
				all = append(all, d)
			}
			for _, tag := range out.Tags {
				ref := ParseReference(tag)
				ref.Digest = out.Digest
				ref.Reference += "@" + out.Digest
				d.Image = &ref
				all = append(all, d)
			}
		}
	}
	return all
}

// MadeOf returns the images that an output of r was made from: what it is based on, nil if that is nothing,
// and the others.
func (r *Run) MadeOf(out *Output) (runtime *Reference, buildtime []Reference) {
	return basesOf(out, r.outputs())
}

// outputs are those of the steps, by Ref.
func (r *Run) outputs() map[string]*Output {
	outputs := map[string]*Output{}
	for _, s := range r.Steps {
		for _, out := range s.Outputs() {
			outputs[out.Ref] = out
		}
	}
	return outputs
}

// basesOf returns the images that out was made from, with those of the run's own images among them.
func basesOf(out *Output, outputs map[string]*Output) (runtime *Reference, buildtime []Reference) {
	root := out
	seen := map[string]bool{}
	for depth := 0; depth <= len(outputs); depth++ {
		for _, b := range root.Bases {
			name := b.Ref + "@" + b.Digest
			if seen[name] {
				continue
			}
			seen[name] = true
			ref := ParseReference(name)
			if name == root.Runtime {
				runtime = &ref
			} else {
				buildtime = append(buildtime, ref)
			}
		}
		next, own := outputs[root.Runtime]
		if !own {
			break
		}
		root = next
	}
	return runtime, buildtime
}

// ParseReference takes a reference apart. It checks nothing; a first part that does not look like a host,
// with a dot, a port or the name localhost, belongs to the repository.
func ParseReference(s string) Reference {
	ref := Reference{Reference: s}
	rest, digest, _ := strings.Cut(s, "@")
	ref.Digest = digest
	if host, path, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		ref.Registry, rest = host, path
	}
	ref.Repository, ref.Tag, _ = strings.Cut(rest, ":")
	return ref
}
