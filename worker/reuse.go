package worker

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"

	"kiln/internal/run"
	"kiln/internal/solve"
)

// An Identified source knows its content by name: sources of equal identity hold the same files, to
// the last mode and time. An empty identity is none.
type Identified interface{ Identity() string }

const (
	maxBuilds = 1000 // that a worker remembers
	maxBases  = 64   // of a build that it remembers
)

// A buildKey is the hash of everything that defines a build.
type buildKey [sha256.Size]byte

// A finishedBuild is a build that was solved: what came of it, and in which run.
type finishedBuild struct {
	key   buildKey
	run   string
	built solve.Built
}

// builds remembers the latest finished builds of a worker, so that one that is asked for again need not
// be solved again. The zero value is ready to use. It is safe for concurrent use.
type builds struct {
	mu     sync.Mutex
	byKey  map[buildKey]*list.Element // of finishedBuild
	recent list.List                  // the last used in front
}

// recall returns the build that has the key.
func (m *builds) recall(key buildKey) (finishedBuild, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.byKey[key]
	if !ok {
		return finishedBuild{}, false
	}
	m.recent.MoveToFront(e)
	return e.Value.(finishedBuild), true
}

// remember takes in a build in place of an earlier one with its key. It drops what was not used for
// longest.
func (m *builds) remember(f finishedBuild) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.byKey[f.key]; ok {
		e.Value = f
		m.recent.MoveToFront(e)
		return
	}
	if m.byKey == nil {
		m.byKey = map[buildKey]*list.Element{}
	}
	m.byKey[f.key] = m.recent.PushFront(f)
	if m.recent.Len() > maxBuilds {
		last := m.recent.Remove(m.recent.Back()).(finishedBuild)
		delete(m.byKey, last.key)
	}
}

// solve returns the image of a build: that of an earlier one if nothing that defines it has changed
// since, else a new one.
func (a *attempt) solve(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
	if !a.repeatable(b) {
		return a.session.Build(ctx, b, log)
	}
	key := a.buildKey(b)
	if f, ok := a.w.builds.recall(key); ok && a.stillTrue(ctx, b, f.built) {
		a.logs.say(b.Step, "nothing has changed since run %s: its image %s is used; --no-cache builds anew", f.run, f.built.Digest)
		f.built.Bases, f.built.BuiltBy = slices.Clone(f.built.Bases), f.run
		return f.built, nil
	}
	built, err := a.session.Build(ctx, b, log)
	if err == nil && built.Closed && len(built.Bases) <= maxBases {
		f := finishedBuild{key: key, run: a.run.ID, built: built}
		f.built.Bases = slices.Clone(built.Bases)
		a.w.builds.remember(f)
	}
	return built, err
}

// repeatable reports whether the build would have the result of an earlier one with its key. Secrets are
// no part of a key, so a build that could read one is not; nor is one that reads what steps wrote.
func (a *attempt) repeatable(b solve.Build) bool {
	login := a.run.TaskUID == "" && len(a.secrets.Logins) > 0 // of a task, its scope is in the key
	// What others have built a confined run might not be allowed to read, and others need not trust it.
	secret := len(a.secrets.Set)+len(a.secrets.Args) > 0
	return !a.confined() && a.w.Resolver != nil && a.identity != "" && !login && !secret && selfContained(b)
}

// selfContained reports whether what b is made from is in its key. Secrets, what is fetched for it, caches
// that others write and what is to be done anew are not.
func selfContained(b solve.Build) bool {
	return !b.NoCache && !b.FromWorkspace && b.Remote == nil &&
		len(b.NoCacheFilter)+len(b.Contexts)+len(b.Secrets)+len(b.SSH)+len(b.CacheFrom)+len(b.CacheTo) == 0
}

// stillTrue reports whether a build of b would find what the one that made built has found: each base
// that is named by a tag under the same digest, and the staged image where it was. A tag of another
// registry is not asked for: that is the build daemon's to do.
func (a *attempt) stillTrue(ctx context.Context, b solve.Build, built solve.Built) bool {
	for _, ref := range built.Tagged {
		if !slices.ContainsFunc(built.Bases, func(base run.Base) bool { return base.Ref == ref }) {
			return false // its digest was never told
		}
	}
	for _, base := range built.Bases {
		if slices.Contains(built.Tagged, base.Ref) && !a.holds(ctx, base.Ref, base.Digest) {
			return false
		}
	}
	return a.holds(ctx, b.Staging+"@"+built.Digest, built.Digest)
}

// holds reports whether the co-located registry has the digest under the reference.
func (a *attempt) holds(ctx context.Context, ref, digest string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil || !a.images.ours(reference.Domain(named)) {
		return false
	}
	name := ""
	switch r := named.(type) {
	case reference.Digested:
		name = r.Digest().String()
	case reference.Tagged:
		name = r.Tag()
	}
	d, err := a.w.Resolver.Resolve(ctx, a.tokens, reference.Path(named), name)
	return err == nil && d.Digest == digest
}

// buildKey returns the key of a build of this attempt. An image of the run that has the run's ID in its
// name is left out: another run's Dockerfile or arguments must name that run to mean it, and so differ.
func (a *attempt) buildKey(b solve.Build) buildKey {
	b.Images = maps.Clone(b.Images)
	maps.DeleteFunc(b.Images, func(name, _ string) bool { return strings.Contains(name, a.run.ID) })
	return keyOf(b, a.w.BuildKit, a.config.CacheScope, a.identity)
}

// keyOf hashes what defines a build that is self-contained: all of b but the name of its step, the build daemon, the scope of
// its cache mounts and the content of the source.
func keyOf(b solve.Build, daemon, scope, source string) buildKey {
	h := hasher{sha256.New()}
	h.text(daemon, scope, source)
	h.text(b.Dockerfile, b.Context, b.Target, b.Staging, b.Epoch.UTC().Format(time.RFC3339Nano))
	h.flags(b.DockerfileInline != nil, b.FromWorkspace, b.NoCache, b.Pull)
	h.text(string(b.DockerfileInline))
	h.list(b.Platforms)
	h.list(b.AddHosts)
	h.list(b.Ulimits)
	h.list(b.Hidden)
	h.number(int(b.Network))
	h.number(int(b.ShmSize))
	for _, m := range []map[string]string{b.BuildArgs, b.Labels, b.Annotations, b.Images, b.Pins} {
		h.pairs(m)
	}
	return buildKey(h.Sum(nil))
}

// A hasher hashes values in a form of which no two sequences share one.
type hasher struct{ hash.Hash }

func (h hasher) number(n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}

func (h hasher) text(values ...string) {
	for _, v := range values {
		h.number(len(v))
		h.Write([]byte(v))
	}
}

func (h hasher) flags(values ...bool) {
	for _, v := range values {
		if v {
			h.number(1)
		} else {
			h.number(0)
		}
	}
}

func (h hasher) list(values []string) {
	h.number(len(values))
	h.text(values...)
}

func (h hasher) pairs(m map[string]string) {
	h.number(len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		h.text(k, m[k])
	}
}
