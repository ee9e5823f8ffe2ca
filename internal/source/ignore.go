package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const (
	ignoreFile    = ".dockerignore"
	maxIgnoreFile = 1 << 20
)

// ignorePatterns returns the patterns that docker would exclude, followed by exceptions for the
// files that are always kept.
func ignorePatterns(dir string, opt ScanOptions) ([]string, error) {
	if opt.NoIgnore {
		return nil, nil
	}
	dockerfile := opt.Dockerfile
	keep := []string{ignoreFile}
	if dockerfile == "" {
		dockerfile = "Dockerfile"
		keep = append(keep, "dockerfile") // what BuildKit tries next
	}
	keep = append(keep, dockerfile, dockerfile+ignoreFile)
	keep = append(keep, opt.Keep...)

	patterns, err := readIgnore(dir, dockerfile+ignoreFile)
	if errors.Is(err, fs.ErrNotExist) {
		patterns, err = readIgnore(dir, ignoreFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return appendKept(patterns, keep)
}

// appendKept adds an exception for every kept file that the patterns exclude. Adding one without
// need would make a walk enter directories that it could skip.
func appendKept(patterns, keep []string) ([]string, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("ignore file: %w", err)
	}
	for _, k := range keep {
		k = path.Clean(filepath.ToSlash(k))
		excluded, err := m.MatchesOrParentMatches(k)
		if err != nil {
			return nil, fmt.Errorf("ignore file: %w", err)
		}
		if excluded {
			patterns = append(patterns, "!"+escapePattern.Replace(k))
		}
	}
	return patterns, nil
}

// escapePattern makes a path a pattern that matches this path only.
var escapePattern = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func readIgnore(dir, name string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.IsDir() {
		return nil, errors.Join(err, fmt.Errorf("%s: not a file", name))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIgnoreFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxIgnoreFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxIgnoreFile)
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return patterns, nil
}
