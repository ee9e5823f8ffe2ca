package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/apiclient"
	"kiln/internal/registry/bucket"
)

const (
	checkPage = 200       // rows looked at in a row
	orphanAge = time.Hour // of a file that nothing refers to: a younger one may be on its way
)

// A checkup collects what a check finds.
type checkup struct {
	s     *Store
	out   apiclient.CheckedImages
	quick bool
}

// Check verifies what is stored while others use it: that every blob and manifest is there and has its
// digest, that manifests refer to nothing that is not there, that no file is without an owner, and that the
// counts are right. A quick check does not read the content of files.
func (s *Store) Check(ctx context.Context, quick bool) (apiclient.CheckedImages, error) {
	c := &checkup{s: s, quick: quick, out: apiclient.CheckedImages{Missing: []string{}, Damaged: []string{},
		Dangling: []string{}, Orphaned: []string{}, Miscounted: []string{}}}
	for _, part := range []func(context.Context) error{c.blobs, c.manifests, c.references, c.files, c.counts} {
		if err := part(ctx); err != nil {
			return c.out, err
		}
	}
	return c.out, nil
}

func note(list *[]string, format string, args ...any) {
	if len(*list) < apiclient.MaxCheckListed {
		*list = append(*list, fmt.Sprintf(format, args...))
	}
}

// storedBlob is a blob as its row tells.
type storedBlob struct {
	id     int64
	digest string
	size   int64
	key    *string
	data   []byte
}

func (c *checkup) blobs(ctx context.Context) error {
	for last, more := int64(0), true; more; {
		rows, err := c.s.rows(ctx, `SELECT b.id, b.digest, b.size, b.key, d.data FROM blob b LEFT JOIN blob_data d ON d.blob = b.id
			WHERE b.id > ? ORDER BY b.id LIMIT ?`, last, checkPage)
		if err != nil {
			return err
		}
		var page []storedBlob
		err = each(rows, func() error {
			var b storedBlob
			err := rows.Scan(&b.id, &b.digest, &b.size, &b.key, &b.data)
			page = append(page, b)
			return err
		})
		if err != nil {
			return err
		}
		for _, b := range page {
			if err := c.blob(ctx, b); err != nil {
				return err
			}
			last = b.id
		}
		more = len(page) == checkPage
	}
	return nil
}

func (c *checkup) blob(ctx context.Context, b storedBlob) error {
	c.out.Blobs++
	c.out.Size += b.size
	var content io.Reader = bytes.NewReader(b.data)
	size := int64(len(b.data))
	if b.key != nil {
		var err error
		if size, err = c.s.blobs.stat(ctx, *b.key); errors.Is(err, fs.ErrNotExist) {
			return c.missing(ctx, b)
		}
		if err != nil {
			return err
		}
	}
	if b.key != nil && !c.quick && size == b.size {
		f, err := c.s.blobs.open(ctx, *b.key, size, span{0, size})
		if errors.Is(err, fs.ErrNotExist) {
			return c.missing(ctx, b)
		}
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // it was only read
		content = f
	}
	what := ""
	if size != b.size {
		what = fmt.Sprintf("it has %d bytes instead of %d", size, b.size)
	} else if b.key == nil || !c.quick {
		d := digest.Digest(b.digest).Algorithm().Digester()
		if _, err := io.Copy(d.Hash(), readerUntil{ctx, content}); err != nil && (ctx.Err() != nil || errors.Is(err, bucket.ErrUnavailable)) {
			return err
		} else if err != nil {
			what = "it cannot be read: " + err.Error()
		} else if d.Digest().String() != b.digest {
			what = "its digest is " + d.Digest().String()
		}
	}
	if what == "" {
		return nil
	}
	where, err := c.where(ctx, b)
	note(&c.out.Damaged, "blob %s (%s): %s", b.digest, where, what)
	return err
}

// readerUntil ends reading with a context.
type readerUntil struct {
	ctx context.Context
	r   io.Reader
}

func (r readerUntil) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// missing notes a blob without a file, unless it was collected meanwhile.
func (c *checkup) missing(ctx context.Context, b storedBlob) error {
	still, err := c.s.row(ctx, `SELECT 1 FROM blob WHERE id = ? AND key = ?`, []any{b.id, *b.key}, new(int))
	if err != nil || !still {
		return err
	}
	where, err := c.where(ctx, b)
	note(&c.out.Missing, "blob %s (%s)", b.digest, where)
	return err
}

// where names repositories that have a blob.
func (c *checkup) where(ctx context.Context, b storedBlob) (string, error) {
	rows, err := c.s.rows(ctx, `SELECT r.name FROM repo_blob l JOIN repository r ON r.id = l.repo WHERE l.blob = ? LIMIT 5`, b.id)
	if err != nil {
		return "", err
	}
	names, err := collectStrings(rows)
	if len(names) == 0 {
		names = []string{"in no repository"}
	}
	return strings.Join(names, ", "), err
}

func (c *checkup) manifests(ctx context.Context) error {
	for last, more := int64(0), true; more; {
		rows, err := c.s.rows(ctx, `SELECT m.id, r.name, m.digest, b.body FROM manifest m JOIN repository r ON r.id = m.repo
			LEFT JOIN manifest_body b ON b.manifest = m.id WHERE m.id > ? ORDER BY m.id LIMIT ?`, last, checkPage)
		if err != nil {
			return err
		}
		n := 0
		err = each(rows, func() error {
			var repository, dgst string
			var body []byte
			if err := rows.Scan(&last, &repository, &dgst, &body); err != nil {
				return err
			}
			n++
			c.out.Manifests++
			c.out.Size += int64(len(body))
			if body == nil {
				note(&c.out.Missing, "manifest %s", imageName(repository, dgst))
			} else if _, err := digestOf(body, dgst); err != nil {
				note(&c.out.Damaged, "manifest %s: %v", imageName(repository, dgst), err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		more = n == checkPage
	}
	return nil
}

// references looks for what manifests and tags refer to and is not there.
func (c *checkup) references(ctx context.Context) error {
	rows, err := c.s.rows(ctx, `
		SELECT r.name || '@' || m.digest || ': blob ' || coalesce(b.digest, e.blob) FROM manifest_blob e JOIN manifest m ON m.id = e.manifest
			JOIN repository r ON r.id = m.repo LEFT JOIN blob b ON b.id = e.blob
			WHERE b.id IS NULL OR NOT EXISTS (SELECT 1 FROM repo_blob l WHERE l.repo = m.repo AND l.blob = e.blob)
		UNION ALL SELECT r.name || '@' || m.digest || ': manifest ' || e.child FROM manifest_child e JOIN manifest m ON m.id = e.manifest
			JOIN repository r ON r.id = m.repo WHERE NOT EXISTS (SELECT 1 FROM manifest c WHERE c.repo = m.repo AND c.digest = e.child)
		UNION ALL SELECT r.name || ':' || t.name FROM tag t JOIN repository r ON r.id = t.repo
			WHERE NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = t.manifest AND m.repo = t.repo)
		LIMIT ?`, apiclient.MaxCheckListed)
	if err != nil {
		return err
	}
	found, err := collectStrings(rows)
	c.out.Dangling = append(c.out.Dangling, found...)
	return err
}

// files looks for content that no blob owns.
func (c *checkup) files(ctx context.Context) error {
	return c.s.blobs.list(ctx, func(f content) error {
		known, err := c.s.row(ctx, `SELECT 1 FROM blob WHERE key = ?1 UNION ALL SELECT 1 FROM doomed WHERE key = ?1`, []any{f.key}, new(int))
		if err == nil && !known && time.Since(f.modified) > orphanAge {
			note(&c.out.Orphaned, "%s (%d bytes)", f.name, f.size)
		}
		return err
	})
}

// counts compares the counts of the metadata with what they count.
func (c *checkup) counts(ctx context.Context) error {
	for _, q := range []string{
		`SELECT 'repository ' || name FROM repository WHERE manifests <> ` + countManifests + ` OR tags <> ` + countTags + ` OR untagged <> ` + countUntagged +
			` OR bytes <> ` + countBytes + ` OR own <> ` + countOwn,
		`SELECT 'blob ' || digest FROM blob WHERE links <> ` + countLinks + ` OR users <> ` + countUsers,
		`SELECT 'blob ' || blob || ' in repository ' || repo FROM repo_blob WHERE refs <> ` + countRefs,
		`SELECT 'manifest ' || digest FROM manifest WHERE held <> ` + countHeld,
		`SELECT 'total' FROM total WHERE blobs <> (SELECT count(*) FROM blob) OR bytes <> (SELECT coalesce(sum(size), 0) FROM blob)`,
	} {
		rows, err := c.s.rows(ctx, q+` LIMIT ?`, apiclient.MaxCheckListed)
		if err != nil {
			return err
		}
		found, err := collectStrings(rows)
		if err != nil {
			return err
		}
		c.out.Miscounted = append(c.out.Miscounted, found...)
	}
	return nil
}
