package buildkit

import (
	"io"
	"strings"
	"sync"
	"time"

	"kiln/internal/dockerfile"
	"kiln/internal/solve"
)

const maxDockerfile = 1 << 20 // bytes of one whose base image is looked for

// findBaseAfter is when the base image is looked for: the daemon gets its solve first.
const findBaseAfter = 5 * time.Millisecond

// findBase looks soon for the reference of the image that b's result is based on, in its Dockerfile.
// What it returns has to be called: it waits for that. The reference is empty if there is none, or if it is
// not known.
func (in *inputs) findBase(b solve.Build) (wait func() string) {
	find := sync.OnceValue(func() string { return in.baseOf(b) })
	soon := time.AfterFunc(findBaseAfter, func() { find() })
	return func() string {
		soon.Stop()
		return find()
	}
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
func runtimeOf(cfg solve.SessionConfig, ref string, b solve.Build, built solve.Built) string {
	if ref == "" {
		return ""
	}
	for _, alias := range cfg.Aliases {
		if rest, ok := strings.CutPrefix(ref, alias+"/"); ok {
			ref = cfg.Registry + "/" + rest
			break
		}
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
