package git

import (
	"context"
	"fmt"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	maxAttributes = 1 << 20 // bytes of a .gitattributes file
	maxPatterns   = 5       // named in a warning
)

// inspect warns of attributes that would make a checkout differ from what is committed, which is what
// the build sees.
func (s *Source) inspect(ctx context.Context) error {
	entries, err := s.list(ctx, s.root)
	if err != nil {
		return err
	}
	e, ok := find(entries, ".gitattributes")
	if !ok || !e.mode.IsRegular() {
		return nil
	}
	b, err := s.root.sn.read(ctx, plumbing.BlobObject, e.id, maxAttributes)
	if err != nil {
		return fmt.Errorf(".gitattributes: %w", err)
	}
	lfs, other := filtered(string(b))
	if len(lfs) > 0 {
		s.warn("Git LFS is not supported: files that match %s are pointers, not the content that they stand for", patterns(lfs))
	}
	if len(other) > 0 {
		s.warn("files that match %s are used as they are committed: filters and conversions of .gitattributes are not applied", patterns(other))
	}
	return nil
}

// filtered returns the patterns whose files a checkout would convert: by Git LFS, or otherwise.
func filtered(attributes string) (lfs, other []string) {
	for line := range strings.Lines(attributes) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		for _, attr := range fields[1:] {
			name, value, _ := strings.Cut(attr, "=")
			switch {
			case name == "filter" && value == "lfs":
				lfs = append(lfs, fields[0])
			case name == "filter" && value != "", name == "working-tree-encoding" && value != "",
				name == "eol" && value == "crlf", attr == "ident":
				other = append(other, fields[0])
			}
		}
	}
	return lfs, other
}

func patterns(all []string) string {
	more := ""
	if n := len(all) - maxPatterns; n > 0 {
		all, more = all[:maxPatterns], fmt.Sprintf(" and %d more", n)
	}
	return clip(strings.Join(all, ", "), 200) + more
}
