package webhook

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"kiln/internal/event"
)

// Bounds of what is taken over from a delivery. Beyond them text is cut and lists count as unknown.
const (
	maxName    = 128
	maxText    = 1 << 10
	maxMessage = 16 << 10
	maxRef     = 512
	maxCommits = 2048
	maxFiles   = 10_000
	maxPaths   = 512 << 10 // bytes of all file names
)

// clip cuts s to n bytes, between characters, and makes it valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// isHash reports whether s is a commit ID in full, or if short allows, an abbreviated one.
func isHash(s string, short bool) bool {
	if len(s) != 40 && len(s) != 64 && (!short || len(s) < 7 || len(s) > 64) {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// notZero returns a commit ID, or nothing for the zeros that stand for no commit.
func notZero(s string) string {
	if strings.Trim(s, "0") == "" {
		return ""
	}
	return s
}

// branchName returns a branch without refs/heads/.
func branchName(ref string) string { return clip(strings.TrimPrefix(ref, "refs/heads/"), maxRef) }

// isRef reports whether s is a branch or tag in full that git could have.
func isRef(s string) bool {
	rest, ok := strings.CutPrefix(s, "refs/heads/")
	if !ok {
		rest, ok = strings.CutPrefix(s, "refs/tags/")
	}
	return ok && goodRefName(rest)
}

// goodRefName reports whether git allows the name, as far as it matters to those who use it later.
func goodRefName(s string) bool {
	return s != "" && len(s) <= maxRef && utf8.ValidString(s) && s[0] != '-' && s[0] != '/' && !strings.HasSuffix(s, "/") &&
		!strings.Contains(s, "..") && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r)
	})
}

// links returns those of the URLs that a repository could be cloned from, without credentials.
func links(urls ...string) []string {
	var out []string
	for _, s := range urls {
		if u := plainURL(s) + sshURL(s); u != "" { // at most one of them is
			out = append(out, u)
		}
	}
	return out
}

// scpPattern is the form user@host:path of an SSH address.
var scpPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\s:][^\s]*$`)

// sshURL returns an address for SSH or git's own protocol, without a password; nothing for any other.
func sshURL(s string) string {
	if s == "" || len(s) > maxText || !utf8.ValidString(s) {
		return ""
	}
	if scpPattern.MatchString(s) {
		return s
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "ssh" && u.Scheme != "git" || u.Host == "" {
		return ""
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String()
}

// plainURL returns an HTTP URL without its user, password and what follows the path; nothing for any
// other, such as the script that a link on a page must not be.
func plainURL(s string) string {
	if s == "" || len(s) > maxText || !utf8.ValidString(s) {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// person returns a person with bounded fields.
func person(id, login, name, email string) event.Person {
	return event.Person{ID: clip(id, maxName), Login: clip(login, maxText), Name: clip(name, maxText), Email: clip(email, maxText)}
}

// fileLists collects the files of a push within the bounds.
type fileLists struct {
	files, bytes int
	unknown      bool
}

// add returns the names of all lists; if they are too many, nothing, now and from then on.
func (l *fileLists) add(lists ...[]string) []string {
	var out []string
	for _, list := range lists {
		for _, name := range list {
			l.files, l.bytes = l.files+1, l.bytes+len(name)
			if l.files > maxFiles || l.bytes > maxPaths {
				l.unknown = true
				return nil
			}
			out = append(out, name)
		}
	}
	return out
}

// numeric is an ID as a word; empty for none.
func numeric(id int64) string {
	if id == 0 {
		return ""
	}
	return strconv.FormatInt(id, 10)
}
