// Package dockerfile finds the base images of a Dockerfile before anything is built.
//
// It is pure: bytes in, references out. It uses BuildKit's own parser and follows BuildKit's rules for
// arguments, stages and targets, so that it names the images that a build will use: only those that the
// target stage needs, including the ones of COPY --from, RUN --mount and the syntax directive. What
// cannot be told from the text alone is reported as unresolved, with the reason, and is not an error.
// What ONBUILD triggers of a base image refer to is not known here.
package dockerfile

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

const maxSize = 1 << 20 // bytes of a Dockerfile

// Options is what the build is invoked with.
type Options struct {
	BuildArgs map[string]string
	Target    string            // stage to build; empty means the last
	Platform  string            // platform to build for; empty means linux/amd64
	Contexts  map[string]string // named contexts: name to docker-image://REF or anything else
}

// Use is how a Dockerfile refers to an image.
type Use string

// The ways to refer to an image.
const (
	UseFrom   Use = "FROM"
	UseCopy   Use = "COPY --from"
	UseMount  Use = "RUN --mount"
	UseSyntax Use = "# syntax"
)

// A Base is an image that a build uses.
type Base struct {
	Ref        string // canonical, with tag or digest: docker.io/library/alpine:latest; "" if unresolved
	Written    string // as it stands in the Dockerfile
	Use        Use    // how it is referred to first
	Platform   string // of FROM --platform; empty means the platform that is built for
	Line       int    // 1-based
	Unresolved string // why Ref is not known
}

// Bases are the images that a build of the target stage uses.
type Bases struct {
	// Runtime is the image that the target stage's chain of FROM ends in, nil if that is scratch or a
	// context that is no image.
	Runtime *Base
	// Buildtime are the others, in order of the Dockerfile, each reference once.
	Buildtime []Base
}

// Scan returns the base images of a Dockerfile. The error says why BuildKit would not build it.
func Scan(dockerfile []byte, opt Options) (Bases, error) {
	if len(dockerfile) > maxSize {
		return Bases{}, fmt.Errorf("the Dockerfile has %d bytes, more than %d", len(dockerfile), maxSize)
	}
	res, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return Bases{}, located(err)
	}
	stages, args, err := instructions.Parse(res.AST, nil)
	if err != nil {
		return Bases{}, located(err)
	}
	s := scanner{opt: opt, lex: shell.NewLex(res.EscapeToken), byName: map[string]*stage{}}
	if err := s.arguments(args); err != nil {
		return Bases{}, err
	}
	s.addStages(stages)
	target, err := s.target()
	if err != nil {
		return Bases{}, err
	}
	s.reach(target)
	bases := Bases{Runtime: target.origin()}
	bases.addSyntax(dockerfile, opt)
	bases.addReached(s.stages)
	return bases, nil
}

// addSyntax adds the image of the Dockerfile's frontend.
func (b *Bases) addSyntax(dockerfile []byte, opt Options) {
	ref, line := opt.BuildArgs["BUILDKIT_SYNTAX"], 0
	if ref == "" {
		syntax, _, loc, ok := parser.DetectSyntax(dockerfile)
		if !ok {
			return
		}
		ref, line = syntax, firstLine(loc)
	}
	b.add(resolve(ref, Base{Use: UseSyntax, Line: line}))
}

// addReached adds what the stages that the target needs refer to.
func (b *Bases) addReached(stages []*stage) {
	for _, st := range stages {
		if !st.reached {
			continue
		}
		if st.base != nil {
			b.add(*st.base)
		}
		for _, img := range st.images {
			b.add(img)
		}
	}
}

// add adds a build-time base unless it is there already or is the runtime base.
func (b *Bases) add(base Base) {
	same := func(o Base) bool {
		return o.Ref == base.Ref && o.Platform == base.Platform && (o.Ref != "" || o.Written == base.Written)
	}
	if b.Runtime != nil && same(*b.Runtime) || slices.ContainsFunc(b.Buildtime, same) {
		return
	}
	b.Buildtime = append(b.Buildtime, base)
}
