package apiclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Files in a data directory by which a client on the same host finds its server.
const (
	ServerFile = "server.json" // a Location
	TokenFile  = "admin.token" // the administrator's token, mode 0600
)

const maxLocateFile = 64 << 10

// A Location is where a server on this host listens.
type Location struct {
	URL string `json:"url"`
	PID int    `json:"pid"`
	// Certificate is the file with the server's certificate, if it speaks TLS, and Name what it is for.
	Certificate string `json:"certificate,omitempty"`
	Name        string `json:"name,omitempty"`
}

// Locate reads where the server of a data directory listens. It returns an error that is
// ErrUnreachable if no server has been started there.
func Locate(dataDir string) (Location, error) {
	var l Location
	path := filepath.Join(dataDir, ServerFile)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, fmt.Errorf("no server has been started on %s: %w", dataDir, ErrUnreachable)
	}
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("%s: %w", path, err)
	}
	if err := CheckURL(l.URL); err != nil {
		return l, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// Serves reports whether addr is the address of l's server. A token found beside l must go nowhere
// else.
func (l Location) Serves(addr string) bool {
	a, errA := url.Parse(l.URL)
	b, errB := url.Parse(addr)
	if errA != nil || errB != nil || a.Host == "" || a.Scheme != b.Scheme {
		return false
	}
	if a.Port() != b.Port() {
		return false
	}
	return strings.EqualFold(a.Hostname(), b.Hostname()) ||
		named(a.Hostname()) && loopback4(b.Hostname()) || loopback4(a.Hostname()) && named(b.Hostname())
}

func named(host string) bool { return strings.EqualFold(host, "localhost") }

func loopback4(host string) bool { return net.IPv4(127, 0, 0, 1).Equal(net.ParseIP(host)) }

// ReadToken reads the administrator's token of a data directory.
func ReadToken(dataDir string) (string, error) {
	path := filepath.Join(dataDir, TokenFile)
	b, err := readSmall(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s: holds no token", path)
	}
	return token, nil
}

func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxLocateFile {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxLocateFile)
	}
	return os.ReadFile(path)
}
