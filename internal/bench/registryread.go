package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
	"kiln/internal/registry"
)

const (
	headMust    = 0.25
	headP99Must = 1    // ms
	headRate    = 6000 // per second
	headSerial  = 300  // requests of a round, one after the other
	headWorkers = 8
	headEach    = 100 // requests of a round, of each connection

	listManifests = 100_000
	listTags      = 10_000
	listAsked     = 60 // times, each
)

// registryHead measures the question what a tag names.
func registryHead(ctx context.Context, l *lab) ([]result, error) {
	_, all, err := l.startDepositories(ctx)
	if err != nil {
		return nil, err
	}
	a, err := newArtwork("bench/app", 1, 1024)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if _, err := d.push(ctx, a); err != nil {
			return nil, err
		}
	}
	serial := make([][]time.Duration, len(all))
	took := make([]time.Duration, len(all)) // with many connections
	for round := range warmUp + l.n {
		for i := range all {
			i = (round + i) % len(all)
			one, err := heads(ctx, all[i], a, headSerial)
			if err != nil {
				return nil, err
			}
			begin := time.Now()
			g, gctx := errgroup.WithContext(ctx)
			for range headWorkers {
				g.Go(func() error { _, err := heads(gctx, all[i], a, headEach); return err })
			}
			if err := g.Wait(); err != nil {
				return nil, err
			}
			if round >= warmUp {
				serial[i] = append(serial[i], one...)
				took[i] += time.Since(begin)
			}
		}
	}
	results := compare("HEAD by tag, p50", all, serial, headMust)
	rate := func(i int) float64 { return float64(headWorkers*headEach*l.n) / took[i].Seconds() }
	s := summarize(serial[0])
	return append(results,
		result{What: "HEAD by tag, p99", Unit: "ms", Value: s.P99, Must: headP99Must, Kiln: &s,
			Note: fmt.Sprintf("p99 of %s %.2f ms, of %s %.2f ms", all[1].name, summarize(serial[1]).P99, all[2].name, summarize(serial[2]).P99)},
		result{What: fmt.Sprintf("%d a second to the rate of %d connections", headRate, headWorkers), Unit: "x", Value: headRate / rate(0), Must: 1,
			Note: fmt.Sprintf("a second: kiln %.0f, %s %.0f, %s %.0f; the clients are on the same processors", rate(0), all[1].name, rate(1), all[2].name, rate(2))}), nil
}

func heads(ctx context.Context, d *depository, a artwork, n int) (times []time.Duration, err error) {
	for range n {
		begin := time.Now()
		if err := d.check(ctx, a); err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin))
	}
	return times, nil
}

// registryLists measures what is asked of a large repository, tags also of docker-registry. It is written into the
// stores while the servers are down.
func registryLists(ctx context.Context, l *lab) ([]result, error) {
	if err := l.fillRegistry(ctx, fillLarge); err != nil {
		return nil, err
	}
	if err := l.fillDockerRegistry(); err != nil {
		return nil, err
	}
	k, all, err := l.startDepositories(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.quiet(ctx); err != nil {
		return nil, err
	}
	tags := func(ctx context.Context, d *depository, query string) error {
		_, err := d.ask(ctx, http.MethodGet, "/v2/large/tags/list"+query, nil, 0, http.StatusOK, nil)
		return err
	}
	for _, d := range all[:2] {
		if err := d.hasTags(ctx, listTags); err != nil {
			return nil, err
		}
	}
	c := k.client()
	var results []result
	for _, q := range []struct {
		name string
		must float64 // ms
		ask  func(context.Context) error
		peer func(context.Context) error
	}{
		{"tags/list of 10,000 tags", 15, func(ctx context.Context) error { return tags(ctx, all[0], "") }, func(ctx context.Context) error { return tags(ctx, all[1], "") }},
		{"tags/list, a page of 100", 2, func(ctx context.Context) error { return tags(ctx, all[0], "?n=100&last=tag-050000") },
			func(ctx context.Context) error { return tags(ctx, all[1], "?n=100&last=tag-050000") }},
		{"manifest metadata, a page of 100 by time", 5, func(ctx context.Context) error {
			_, err := c.Manifests(ctx, "large", false, false, "", 100)
			return err
		}, nil},
		{"sizes of the repository", 50, func(ctx context.Context) error { _, err := c.Repository(ctx, "large"); return err }, nil},
		{"what the deletion of a manifest would free", 50, func(ctx context.Context) error {
			_, err := c.Delete(ctx, apiclient.Delete{Image: apiclient.Image{Repository: "large", Reference: "tag-050000"}, DryRun: true})
			return err
		}, nil},
		{"what the deletion of the repository would free", 50, func(ctx context.Context) error {
			_, err := c.Delete(ctx, apiclient.Delete{Image: apiclient.Image{Repository: "large"}, DryRun: true})
			return err
		}, nil},
	} {
		ours, theirs, err := askBoth(ctx, q.ask, q.peer)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", q.name, err)
		}
		a := summarize(ours)
		r := result{What: q.name, Unit: "ms", Value: a.P50, Must: q.must, Kiln: &a}
		if q.peer != nil {
			b := summarize(theirs)
			r.Peer, r.PeerName = &b, all[1].name
		}
		results = append(results, r)
	}
	return results, nil
}

// hasTags finds out whether the large repository has so many tags.
func (d *depository) hasTags(ctx context.Context, want int) error {
	var list struct{ Tags []string }
	_, err := d.ask(ctx, http.MethodGet, "/v2/large/tags/list", nil, 0, http.StatusOK, func(r io.Reader) error { return json.NewDecoder(r).Decode(&list) })
	if err == nil && len(list.Tags) != want {
		err = fmt.Errorf("%s lists %d tags, want %d", d.name, len(list.Tags), want)
	}
	return err
}

// askBoth asks both sides many times, by turns.
func askBoth(ctx context.Context, ask, peer func(context.Context) error) (ours, theirs []time.Duration, err error) {
	for round := range warmUp + listAsked {
		begin := time.Now()
		if err := ask(ctx); err != nil {
			return nil, nil, err
		}
		a := time.Since(begin)
		begin = time.Now()
		if peer != nil {
			if err := peer(ctx); err != nil {
				return nil, nil, err
			}
		}
		if round >= warmUp {
			ours, theirs = append(ours, a), append(theirs, time.Since(begin))
		}
	}
	return ours, theirs, nil
}

// fillRegistry makes kiln's registry and has it filled by a function, before the server has it.
func (l *lab) fillRegistry(ctx context.Context, fill func(context.Context, *sql.DB, string) error) error {
	dir, err := l.mkdir("kiln/registry")
	if err != nil {
		return err
	}
	s, err := registry.Open(dir, registry.Options{})
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "registry.db")+"?_pragma=synchronous(0)")
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, db, dir), db.Close())
}

// numbers are the rows 1 to ?1.
const numbers = `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?1) `

// fillLarge makes a repository of manifests of two layers, and of tags.
func fillLarge(ctx context.Context, db *sql.DB, _ string) error {
	for _, q := range []string{
		`INSERT INTO repository (id, name, created) SELECT 1, 'large', ?1`,
		numbers + `INSERT INTO blob (id, digest, size, created) SELECT n, printf('sha256:%064x', n), 1000, 1 FROM c UNION ALL
			SELECT ?1 + n, printf('sha256:%064x', ?1 + n), 1000, 1 FROM c`,
		`INSERT INTO repo_blob (repo, blob, touched) SELECT 1, id, ?1 FROM blob`,
		numbers + `INSERT INTO manifest (id, repo, digest, media_type, artifact_type, platform, size, content, pushed, touched)
			SELECT n, 1, printf('sha256:%064x', n), '` + imageManifest + `', '', 'linux/amd64', 500, 2000, n, n FROM c`,
		numbers + `INSERT INTO manifest_blob (manifest, blob) SELECT n, n FROM c UNION ALL SELECT n, ?1 + n FROM c`,
		fmt.Sprintf(numbers+`INSERT INTO tag (repo, name, manifest, protected, created, updated)
			SELECT 1, printf('tag-%%06d', n), n, 0, n, n FROM c WHERE n %% %d = 0`, listManifests/listTags),
	} {
		if _, err := db.ExecContext(ctx, q, listManifests); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// fillDockerRegistry makes a repository of so many tags as docker-registry stores them.
func (l *lab) fillDockerRegistry() error {
	const link = "sha256:0000000000000000000000000000000000000000000000000000000000000001"
	for n := range listTags {
		dir, err := l.mkdir(fmt.Sprintf("docker-registry/data/docker/registry/v2/repositories/large/_manifests/tags/tag-%06d/current", (n+1)*listManifests/listTags))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "link"), []byte(link), 0o644); err != nil {
			return err
		}
	}
	return nil
}
