package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	importSize   = 3 << 10 // bytes of each file, about
	importPerDir = 100     // files
	importDir    = "d0001" // which the Dockerfile copies
	importFile   = importDir + "/f000100"
	importBranch = "refs/heads/main"
)

// importRepo makes a bare repository of so many files. There is no work tree: git would take minutes to add
// so many files, and then pack them again while something else is measured.
func (s *gitServer) importRepo(ctx context.Context, files int) (*repo, error) {
	r := s.bareRepo()
	if _, err := git(ctx, s.root, "init", "-q", "--bare", "-b", "main", r.bare); err != nil {
		return nil, err
	}
	for _, setting := range [][]string{{"gc.auto", "0"}, {"maintenance.auto", "false"}} {
		if _, err := git(ctx, r.bare, "config", setting[0], setting[1]); err != nil {
			return nil, err
		}
	}
	return r, r.fastImport(ctx, func(w io.Writer) error {
		noise, content, rnd := make([]byte, importSize/2), make([]byte, importSize), rand.NewChaCha8([32]byte{})
		for i := range files {
			_, _ = rnd.Read(noise)     // never fails
			hex.Encode(content, noise) // shrinks to about a half, as source text does
			if err := modify(w, fmt.Sprintf("d%04d/f%06d", i/importPerDir, i), content); err != nil {
				return err
			}
		}
		return nil
	})
}

// clone makes a repository of the same content at another URL.
func (s *gitServer) clone(r *repo) (*repo, error) {
	c := s.bareRepo()
	return c, os.CopyFS(c.bare, os.DirFS(r.bare))
}

func (s *gitServer) bareRepo() *repo {
	name := unique() + ".git"
	return &repo{bare: filepath.Join(s.root, name), url: s.URL + "/" + name}
}

// commit makes a commit that changes one file.
func (r *repo) commit(ctx context.Context, file, content string) (p pushed, err error) {
	if p.before, err = git(ctx, r.bare, "rev-parse", importBranch); err != nil {
		return p, err
	}
	err = r.fastImport(ctx, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "from %s\n", p.before); err != nil {
			return err
		}
		return modify(w, file, []byte(content))
	})
	if err != nil {
		return p, err
	}
	p.files = []string{file}
	p.after, err = git(ctx, r.bare, "rev-parse", importBranch)
	return p, err
}

// modify writes the change of one file as git fast-import reads it.
func modify(w io.Writer, name string, content []byte) error {
	_, err := fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n%s\n", name, len(content), content)
	return err
}

// fastImport adds a commit to the branch, whose changes are written by fill.
func (r *repo) fastImport(ctx context.Context, fill func(io.Writer) error) error {
	cmd := exec.CommandContext(ctx, "git", "fast-import", "--quiet")
	cmd.Dir, cmd.Env = r.bare, gitEnvironment()
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w := bufio.NewWriterSize(in, 1<<20)
	_, err = fmt.Fprintf(w, "commit %s\ncommitter bench <bench@example.com> %d +0000\ndata 6\nchange\n", importBranch, time.Now().Unix())
	if err == nil {
		err = fill(w)
	}
	if err == nil {
		err = w.Flush()
	}
	_ = in.Close()
	if werr := cmd.Wait(); werr != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, werr, strings.TrimSpace(said.String()))
	}
	return err
}
