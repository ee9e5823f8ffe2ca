package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
)

// maxSocketPath is what fits into a sockaddr_un, its final zero byte left out.
const maxSocketPath = 107

// Config says how a daemon works. It travels as JSON through a pipe from the supervising process to the
// daemon, and is neither logged nor stored: it may hold credentials of registries.
type Config struct {
	// Root is the directory of everything that the daemon keeps. One daemon uses it at a time.
	Root string `json:"root"`
	// Socket is the path of the unix socket that is served. It is at most 107 bytes long.
	Socket string `json:"socket"`
	// StateTmpfs is a directory on a tmpfs where the daemon keeps its metadata databases while it
	// runs, in a subdirectory of its own. Empty keeps them below Root, on disk.
	StateTmpfs string `json:"stateTmpfs,omitempty"`
	// Runc is the runc program, a path or a name to look up; "" is "runc".
	Runc string `json:"runc,omitempty"`
	// Snapshotter is "overlayfs", "native" or "" for the first that works at Root.
	Snapshotter string `json:"snapshotter,omitempty"`
	// Registries describes how to talk to a registry, by host ("docker.io", "10.0.0.7:5000").
	Registries map[string]Registry `json:"registries,omitempty"`
	// GC bounds what the daemon keeps on disk.
	GC GC `json:"gc"`
	// Parallelism is the number of build steps and containers executed at once; 0 means two per
	// processor and at least four.
	Parallelism int `json:"parallelism,omitempty"`
	// Pools are the address ranges from which the networks of runs are cut; nil means the
	// defaults of package runnet.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Nameservers replace those of the host's resolv.conf in containers.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	// AllowHostNetwork lets builds ask for the host's network.
	AllowHostNetwork bool `json:"allowHostNetwork,omitempty"`
	// AllowInsecure lets builds ask for privileged containers.
	AllowInsecure bool `json:"allowInsecure,omitempty"`
	// OwnRegistries are more registries, HOST or HOST:PORT, that may be anywhere, as those of Registries and
	// their mirrors may.
	OwnRegistries []string `json:"ownRegistries,omitempty"`
	// AllowSources are hosts, host:port, addresses and networks outside of the public internet from which
	// builds may fetch what a Dockerfile names by URL, and where all other registries may be.
	AllowSources []string `json:"allowSources,omitempty"`
	// Logger takes the daemon's own log; nil drops it.
	Logger *slog.Logger `json:"-"`
}

// Registry says how a registry host is reached.
type Registry struct {
	// Mirrors are hosts that are asked first when an image is pulled.
	Mirrors []string `json:"mirrors,omitempty"`
	// PlainHTTP speaks HTTP instead of HTTPS. Loopback hosts are spoken to by HTTP anyway.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// TrustedCerts are files with certificates in PEM that the host's may be, or be signed by, beside those
	// that the system trusts. A host that has some is spoken to by HTTPS on loopback, too.
	TrustedCerts []string `json:"trustedCerts,omitempty"`
	// CertName is the name that the host's certificate is for, where the host is reached by another one: "" is the
	// host's. With a name the host is reached directly, by no proxy.
	CertName string `json:"certName,omitempty"`
	// Authorization is sent with every request to the host, so that a build need not be refused
	// first and then ask its client for credentials. It is a secret.
	Authorization string `json:"authorization,omitempty"`
}

// GC bounds the disk space of the build cache, in bytes. Zero values take BuildKit's defaults, which
// follow the size of the disk.
type GC struct {
	Reserved int64 `json:"reserved,omitempty"` // never freed below this
	MaxUsed  int64 `json:"maxUsed,omitempty"`  // freed above this
	MinFree  int64 `json:"minFree,omitempty"`  // freed until the disk has this left
}

// validate reports everything that is wrong with the configuration at once.
func (c *Config) validate() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root %q: must be an absolute path", c.Root))
	}
	// An overlay's mount options separate paths by these.
	if strings.ContainsAny(c.Root, ":,\\\"") {
		errs = append(errs, fmt.Errorf("root %q: must not contain a colon, comma, backslash or quote", c.Root))
	}
	if !filepath.IsAbs(c.Socket) {
		errs = append(errs, fmt.Errorf("socket %q: must be an absolute path", c.Socket))
	}
	if n := len(c.Socket); n > maxSocketPath {
		errs = append(errs, fmt.Errorf("socket %q: %d bytes long, a unix socket's path has at most %d", c.Socket, n, maxSocketPath))
	}
	if c.StateTmpfs != "" && !filepath.IsAbs(c.StateTmpfs) {
		errs = append(errs, fmt.Errorf("state directory %q: must be an absolute path", c.StateTmpfs))
	}
	switch c.Snapshotter {
	case "", overlayfs, nativefs:
	default:
		errs = append(errs, fmt.Errorf("snapshotter %q: must be %q or %q", c.Snapshotter, overlayfs, nativefs))
	}
	if c.Parallelism < 0 {
		errs = append(errs, fmt.Errorf("parallelism %d: must not be negative", c.Parallelism))
	}
	if _, err := c.guard(); err != nil {
		errs = append(errs, err)
	}
	if c.GC.Reserved < 0 || c.GC.MaxUsed < 0 || c.GC.MinFree < 0 {
		errs = append(errs, fmt.Errorf("gc %+v: sizes must not be negative", c.GC))
	}
	return errors.Join(errs...)
}

// parallelism is the number of containers executed at once.
func (c *Config) parallelism() int {
	if c.Parallelism > 0 {
		return c.Parallelism
	}
	return max(4, 2*runtime.NumCPU())
}

// runc is the name or path of the runc program.
func (c *Config) runc() string {
	if c.Runc == "" {
		return "runc"
	}
	return c.Runc
}
