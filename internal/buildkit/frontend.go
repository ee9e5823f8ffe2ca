package buildkit

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"kiln/internal/solve"
)

// reservedArgs are build arguments that BuildKit's frontend takes for settings which are not the
// Dockerfile's to make: the name by which a container joins a run's network, and the name space of
// its cache mounts.
var reservedArgs = []string{"BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_CACHE_MOUNT_NS"}

// frontendAttrs returns the options of the dockerfile frontend for b.
func frontendAttrs(cfg solve.SessionConfig, b solve.Build, dockerfile string) (map[string]string, error) {
	attrs := map[string]string{"filename": dockerfile}
	for k, v := range b.BuildArgs {
		if slices.Contains(reservedArgs, k) {
			return nil, stepError("build argument %s is reserved", k)
		}
		attrs["build-arg:"+k] = v
	}
	for k, v := range b.Labels {
		attrs["label:"+k] = v
	}
	if cfg.CacheScope != "" {
		attrs["build-arg:BUILDKIT_CACHE_MOUNT_NS"] = cfg.CacheScope
	}
	if cfg.OwnFrontend {
		attrs["cmdline"] = "docker/dockerfile" // which says that this frontend is the one that was asked for
	}
	if b.Target != "" {
		attrs["target"] = b.Target
	}
	if len(b.Platforms) > 0 {
		attrs["platform"] = strings.Join(b.Platforms, ",")
	}
	switch {
	case b.NoCache:
		attrs["no-cache"] = "" // every stage
	case len(b.NoCacheFilter) > 0:
		attrs["no-cache"] = strings.Join(b.NoCacheFilter, ",")
	}
	if b.Network == solve.NetworkNone {
		attrs["force-network-mode"] = "none"
	}
	if b.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(b.ShmSize, 10)
	}
	if len(b.Ulimits) > 0 {
		attrs["ulimit"] = strings.Join(b.Ulimits, ",")
	}
	if b.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if !b.Epoch.IsZero() {
		attrs["build-arg:SOURCE_DATE_EPOCH"] = strconv.FormatInt(b.Epoch.Unix(), 10)
	}
	if len(b.AddHosts) > 0 {
		hosts, err := addHosts(b.AddHosts)
		if err != nil {
			return nil, err
		}
		attrs["add-hosts"] = hosts
	}
	return attrs, nil
}

// addHosts translates docker's HOST:IP and HOST=IP to the frontend's list.
func addHosts(list []string) (string, error) {
	out := make([]string, 0, len(list))
	for _, h := range list {
		i := strings.IndexAny(h, "=:")
		if i <= 0 || strings.ContainsAny(h, "\", \n") {
			return "", stepError("add-host %q: want HOST:IP", h)
		}
		ip := net.ParseIP(strings.Trim(h[i+1:], "[]"))
		if ip == nil {
			return "", stepError("add-host %q: %q is not an IP address", h, h[i+1:])
		}
		out = append(out, h[:i]+"="+ip.String())
	}
	return strings.Join(out, ","), nil
}

// pushedTo is how the daemon names a repository or reference that it pushes to, or reads a cache from.
func pushedTo(cfg solve.SessionConfig, ref string) string {
	if rest, ok := strings.CutPrefix(ref, cfg.Registry+"/"); ok && cfg.RegistryAt != "" {
		return cfg.RegistryAt + "/" + rest
	}
	return ref
}

// exportAttrs returns the options of the image exporter for b.
func exportAttrs(cfg solve.SessionConfig, b solve.Build) map[string]string {
	attrs := map[string]string{
		"name":           pushedTo(cfg, b.Staging),
		"push":           "true",
		"push-by-digest": "true",
		"name-canonical": "true",
		"oci-mediatypes": "true",
	}
	if cfg.Insecure && !loopback(cmp.Or(cfg.RegistryAt, cfg.Registry)) {
		attrs["registry.insecure"] = "true"
	}
	if !b.Epoch.IsZero() {
		attrs["rewrite-timestamp"] = "true"
	}
	for k, v := range b.Annotations {
		attrs[exptypes.AnnotationManifestKey(nil, k)] = v
		if len(b.Platforms) > 1 {
			attrs[exptypes.AnnotationIndexKey(k)] = v
		}
	}
	return attrs
}

// cacheExports translates the caches that a build writes.
func cacheExports(cfg solve.SessionConfig, list []solve.Cache) []client.CacheOptionsEntry {
	var out []client.CacheOptionsEntry
	for _, c := range list {
		if c.Ref == "" {
			out = append(out, client.CacheOptionsEntry{Type: "inline"})
			continue
		}
		e := registryCache(cfg, c.Ref)
		// A registry that knows manifests of images only takes the cache, too.
		e.Attrs["oci-mediatypes"], e.Attrs["image-manifest"] = "true", "true"
		if c.Max {
			e.Attrs["mode"] = "max"
		}
		if c.Ignore {
			e.Attrs["ignore-error"] = "true"
		}
		out = append(out, e)
	}
	return out
}

// cacheImports translates the caches that a build reads. One that is not there is none.
func cacheImports(cfg solve.SessionConfig, list []solve.Cache) []client.CacheOptionsEntry {
	var out []client.CacheOptionsEntry
	for _, c := range list {
		out = append(out, registryCache(cfg, c.Ref))
	}
	return out
}

func registryCache(cfg solve.SessionConfig, ref string) client.CacheOptionsEntry {
	ref = pushedTo(cfg, ref)
	attrs := map[string]string{"ref": ref}
	if host, _, _ := strings.Cut(ref, "/"); cfg.Insecure && host == cmp.Or(cfg.RegistryAt, cfg.Registry) && !loopback(host) {
		attrs["registry.insecure"] = "true"
	}
	return client.CacheOptionsEntry{Type: "registry", Attrs: attrs}
}

// loopback reports whether a registry host is this machine: BuildKit speaks plain HTTP to such a host
// by itself, and told that it is insecure would try TLS first at every build.
func loopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// imagePolicy returns the policy that makes the daemon use the run's own images, and the digests that
// it is pinned to, where a Dockerfile writes their references, and the co-located registry under its own name where
// it writes another one, which the daemon may not know. Unlike named contexts it never touches a
// stage of the same name.
func imagePolicy(cfg solve.SessionConfig, b solve.Build) *spb.Policy {
	to := make(map[string]string, len(b.Images)+len(b.Pins))
	for ref, digest := range b.Pins {
		to[ref] = ref + "@" + digest
	}
	maps.Copy(to, b.Images)
	p := &spb.Policy{}
	for _, ref := range slices.Sorted(maps.Keys(to)) {
		p.Rules = append(p.Rules, convert(spb.MatchType_EXACT, imageScheme+ref, imageScheme+to[ref]))
	}
	for _, alias := range cfg.Aliases { // what comes of it goes through all rules again
		if alias != cfg.Registry {
			p.Rules = append(p.Rules, convert(spb.MatchType_REGEX, "^"+regexp.QuoteMeta(imageScheme+alias+"/"), imageScheme+cfg.Registry+"/"))
		}
	}
	if len(p.Rules) == 0 {
		return nil
	}
	return p
}

// convert is the rule that makes the daemon use another source than the ones that match.
func convert(match spb.MatchType, from, to string) *spb.Rule {
	return &spb.Rule{Action: spb.PolicyAction_CONVERT, Selector: &spb.Selector{Identifier: from, MatchType: match},
		Updates: &spb.Update{Identifier: to}}
}

func stepError(format string, args ...any) *solve.StepError {
	return &solve.StepError{ExitCode: -1, Message: fmt.Sprintf(format, args...)}
}
