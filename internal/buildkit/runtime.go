package buildkit

import (
	"io"
	"strings"

	"kiln/internal/dockerfile"
	"kiln/internal/solve"
)

const maxDockerfile = 1 << 20 // bytes of one whose base image is looked for

// findBase begins to look for the reference of the image that b's result is based on, in its Dockerfile.
// What it returns waits for that; it is empty if there is none, or if it is not known.
func (in *inputs) findBase(b solve.Build) (wait func() string) {
	found := make(chan string, 1)
	go func() { found <- in.baseOf(b) }()
	return func() string { return <-found }
}

// baseOf reads the Dockerfile. What is wrong with it the build says better.
func (in *inputs) baseOf(b solve.Build) string {
	f, err := in.mounts["dockerfile"].Open(in.dockerfileName)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDockerfile))
	if err != nil {
		return ""
	}
	opt := dockerfile.Options{BuildArgs: b.BuildArgs, Target: b.Target}
	if len(b.Platforms) > 0 {
		opt.Platform = b.Platforms[0]
	}
	bases, err := dockerfile.Scan(text, opt)
	if err != nil || bases.Runtime == nil {
		return ""
	}
	return bases.Runtime.Ref
}

// runtimeOf returns the image that a Dockerfile calls ref, with the digest that the build has used.
func runtimeOf(ref string, b solve.Build, built solve.Built) string {
	if ref == "" {
		return ""
	}
	if own, ok := b.Images[ref]; ok {
		return own
	}
	for _, base := range built.Bases {
		name, digest, pinned := strings.Cut(ref, "@")
		if base.Ref == ref || pinned && base.Digest == digest && (base.Ref == name || strings.HasPrefix(base.Ref, name+":")) {
			return base.Ref + "@" + base.Digest
		}
	}
	return ""
}
