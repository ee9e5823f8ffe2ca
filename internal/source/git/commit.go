package git

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	maxMessage = 64 << 10     // bytes of a commit's message that are kept
	year10000  = 253402300800 // in seconds; such times cannot be written as JSON
)

// A Commit is what a repository records about a state of its files.
type Commit struct {
	ID      string    // 40 hex digits
	Tree    string    // ID of the root directory: equal for equal content
	Time    time.Time // of the commit, not its author's; zero if it has none that makes sense
	Author  string
	Email   string // of the author
	Message string
}

// parseCommit reads a commit object. The text in it is whatever its author wrote.
func parseCommit(id plumbing.Hash, b []byte) (Commit, error) {
	c := Commit{ID: id.String()}
	header, message, _ := bytes.Cut(b, []byte("\n\n"))
	for line := range strings.SplitSeq(string(header), "\n") {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "tree":
			c.Tree = value
		case "author":
			c.Author, c.Email, _ = parseSignature(value)
		case "committer":
			_, _, c.Time = parseSignature(value)
		}
	}
	if !isCommit(c.Tree) {
		return c, fmt.Errorf("%w: commit %s has no tree", ErrBadTree, id)
	}
	c.Message = strings.ToValidUTF8(string(message[:min(len(message), maxMessage)]), "\uFFFD")
	return c, nil
}

// parseSignature reads "Name <email> seconds zone".
func parseSignature(s string) (name, email string, at time.Time) {
	name, rest, _ := strings.Cut(strings.ToValidUTF8(s, "\uFFFD"), "<")
	name = strings.TrimSpace(name)
	i := strings.LastIndexByte(rest, '>')
	if i < 0 {
		return name, "", at
	}
	email = rest[:i]
	if fields := strings.Fields(rest[i+1:]); len(fields) > 0 {
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil && n >= 0 && n < year10000 {
			at = time.Unix(n, 0).UTC()
		}
	}
	return name, email, at
}

// tagTarget returns what an annotated tag points to.
func tagTarget(b []byte) (plumbing.Hash, bool) {
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	id, ok := strings.CutPrefix(string(line), "object ")
	return plumbing.NewHash(id), ok && isCommit(id)
}

const maxTags = 8 // that point to each other

// peel follows annotated tags to a commit.
func peel(id plumbing.Hash, read func(plumbing.Hash) ([]byte, error)) (plumbing.Hash, Commit, error) {
	for range maxTags {
		b, err := read(id)
		if err != nil {
			return id, Commit{}, err
		}
		next, tag := tagTarget(b)
		if !tag {
			c, err := parseCommit(id, b)
			return id, c, err
		}
		id = next
	}
	return id, Commit{}, fmt.Errorf("%w: a tag of a tag of a tag", ErrBadTree)
}
