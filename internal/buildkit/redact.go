package buildkit

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// mask stands for what must not be shown.
const mask = "***"

// minSecret is the length below which a password is not masked: it would make every text unreadable
// and is none worth hiding.
const minSecret = 4

var (
	urlUser  = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s"']+@`)
	urlQuery = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s"'?]+)\?[^\s"']+`)
)

// A redactor masks credentials in messages: passwords that were handed to the daemon, and the user
// and query parts of URLs, where registries and git hosts put tokens.
type redactor struct {
	mu      sync.Mutex
	secrets []string
}

func (r *redactor) add(secret string) {
	if len(secret) < minSecret {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.secrets, secret) {
		r.secrets = append(r.secrets, secret)
	}
}

func (r *redactor) String(s string) string {
	if strings.Contains(s, "://") {
		s = urlUser.ReplaceAllString(s, "${1}"+mask+"@")
		s = urlQuery.ReplaceAllString(s, "${1}?"+mask)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, secret := range r.secrets {
		s = strings.ReplaceAll(s, secret, mask)
	}
	return s
}
