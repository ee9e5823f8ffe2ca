package registry_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// fill makes a registry large by one statement each: a repository of n manifests, each with a tag, two blobs
// of its own and one that all share, and garbage blobs beside them.
func fill(b *testing.B, r *registrytest.Registry, n, garbage int) {
	b.Helper()
	putBlob(b, r, "large", []byte("shared"))
	putBlob(b, r, "other", []byte("shared"))
	tinyPush(b, r, "large", "tiny", []byte("layer"))
	db, err := sql.Open("sqlite", filepath.Join(r.Dir, "registry.db")+"?_pragma=busy_timeout(60000)&_pragma=synchronous(0)")
	if err != nil {
		b.Fatal(err)
	}
	const count = `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?1) `
	repo := `(SELECT id FROM repository WHERE name = 'large')`
	for _, q := range []struct {
		query string
		args  []any
	}{
		{count + `INSERT INTO blob (id, digest, size, created) SELECT 1000 + n, printf('sha256:%064x', n), 1000, 1 FROM c`, []any{2*n + garbage}},
		{count + `INSERT INTO repo_blob (repo, blob, touched) SELECT ` + repo + `, 1000 + n, 1 FROM c`, []any{2*n + garbage}},
		{count + `INSERT INTO manifest (id, repo, digest, media_type, artifact_type, platform, size, content, pushed, touched)
			SELECT 1000 + n, ` + repo + `, printf('sha256:%064x', n), 'application/vnd.oci.image.manifest.v1+json', '', 'linux/amd64', 500, 2006, n, n FROM c`, []any{n}},
		{count + `INSERT INTO manifest_blob (manifest, blob) SELECT 1000 + n, 1000 + 2 * n FROM c UNION ALL SELECT 1000 + n, 999 + 2 * n FROM c
			UNION ALL SELECT 1000 + n, (SELECT id FROM blob WHERE size = 6) FROM c`, []any{n}},
		{count + `INSERT INTO tag (repo, name, manifest, protected, created, updated) SELECT ` + repo + `, printf('tag-%06d', n), 1000 + n, 0, n, n FROM c WHERE n % 10 = 0`, []any{n}},
	} {
		if _, err := db.Exec(q.query, q.args...); err != nil {
			b.Fatal(q.query, err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLarge measures what is asked of a repository of 100,000 manifests and 10,000 tags.
func BenchmarkLarge(b *testing.B) {
	r := registrytest.Start(b)
	fill(b, r, 100_000, 0)
	for _, m := range []struct {
		name string
		ask  func(context.Context) error
	}{
		{"sizes", func(ctx context.Context) error { _, err := r.Store.Repository(ctx, "large"); return err }},
		{"catalog", func(ctx context.Context) error { _, err := r.Store.Catalog(ctx, true, "", 100); return err }},
		{"list-metadata-100", func(ctx context.Context) error {
			_, err := r.Store.Manifests(ctx, registry.ManifestQuery{Repository: "large", N: 100})
			return err
		}},
		{"manifest-deletion", func(ctx context.Context) error {
			_, err := r.Store.Delete(ctx, "large", "tag-050000", true)
			return err
		}},
		{"repository-deletion", func(ctx context.Context) error { _, err := r.Store.Delete(ctx, "large", "", true); return err }},
		{"tags-10000", func(context.Context) error { want(b, r, http.StatusOK, "GET", "/v2/large/tags/list", nil); return nil }},
		{"tags-100", func(context.Context) error {
			want(b, r, http.StatusOK, "GET", "/v2/large/tags/list?n=100&last=tag-050000", nil)
			return nil
		}},
	} {
		b.Run(m.name, func(b *testing.B) {
			var took []time.Duration
			for range b.N {
				begin := time.Now()
				if err := m.ask(b.Context()); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
			}
			reportP50(b, took)
		})
	}
}

// BenchmarkPushWhileCollecting pushes from four clients alone, and while 30,000 blobs are collected.
func BenchmarkPushWhileCollecting(b *testing.B) {
	for _, garbage := range []int{0, 30_000} {
		b.Run(fmt.Sprint("garbage-", garbage), func(b *testing.B) {
			r := registrytest.Start(b)
			fill(b, r, 1000, garbage)
			ctx, stop := context.WithCancel(b.Context())
			defer stop()
			begin := time.Now()
			var wg, pushing sync.WaitGroup
			var mu sync.Mutex
			var took []time.Duration
			for p := range 4 {
				pushing.Go(func() {
					for i := 0; ctx.Err() == nil && i < 400; i++ {
						begin := time.Now()
						tinyPush(b, r, fmt.Sprint("push", p), fmt.Sprint("t", i), bytes.Repeat(fmt.Appendf(nil, "%d-%d", p, i), 100))
						mu.Lock()
						took = append(took, time.Since(begin))
						mu.Unlock()
					}
				})
			}
			if garbage > 0 {
				wg.Go(func() {
					got, err := r.Store.Collect(ctx, registry.Collection{})
					if err != nil && !errors.Is(err, context.Canceled) {
						b.Error(err)
					}
					b.ReportMetric(float64(got.Blobs)/time.Since(begin).Seconds(), "collected/s")
				})
			}
			pushing.Wait()
			stop()
			wg.Wait()
			reportP50(b, took)
		})
	}
}
