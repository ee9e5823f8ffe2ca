package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
)

const (
	garbageBlobs = 30_000
	garbageFiles = 3_000 // of them are files, the others are small
	garbageFile  = 70_000
	garbageSmall = 1_000
	gcMust       = 1.3
	gcClients    = 4
	gcPushes     = 20 // of each client in a round
)

// registryGC measures small pushes of four clients while garbage is collected, and without that, by turns until
// there is no more: the collection of a round is interrupted when the pushes are done, and the next one goes on.
// Every push must succeed, and in the end all of the garbage must be gone and all images be there.
func registryGC(ctx context.Context, l *lab) ([]result, error) {
	if err := l.fillRegistry(ctx, fillGarbage); err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, "")
	if err != nil {
		return nil, err
	}
	g := &gcBench{client: k.client(), side: newDepository("kiln", k.store, k.process)}
	var alone, beside []time.Duration
	for round, done := 0, false; !done; round++ {
		one, err := g.pushes(ctx)
		if err != nil {
			return nil, err
		}
		var two []time.Duration
		if two, done, err = g.whileCollecting(ctx); err != nil {
			return nil, err
		}
		if round >= warmUp && !done { // the last of the garbage may have been gone at once
			alone, beside = append(alone, one...), append(beside, two...)
		}
	}
	if len(beside) == 0 {
		return nil, errors.New("the garbage was gone before anything was measured")
	}
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	a, b := summarize(beside), summarize(alone)
	return []result{{What: "small push of 4 clients while collecting / without", Unit: "x", Value: a.P50 / b.P50, Must: gcMust, Kiln: &a, Peer: &b, PeerName: "without",
		Note: fmt.Sprintf("%d pushes each, none failed, until all of %d blobs were collected", len(beside), garbageBlobs)}}, nil
}

type gcBench struct {
	client *apiclient.Client
	side   *depository
	all    []artwork
}

// pushes has four clients push a round of images.
func (g *gcBench) pushes(ctx context.Context) ([]time.Duration, error) {
	each := make([][]time.Duration, gcClients)
	made := make([][]artwork, gcClients)
	group, ctx := errgroup.WithContext(ctx)
	for n := range gcClients {
		group.Go(func() error {
			for range gcPushes {
				a, err := newArtwork(fmt.Sprint("bench/app", n), 1, 1024)
				if err != nil {
					return err
				}
				took, err := g.side.push(ctx, a)
				if err != nil {
					return err
				}
				each[n], made[n] = append(each[n], took), append(made[n], a)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var all []time.Duration
	for n := range each {
		all = append(all, each[n]...)
		g.all = append(g.all, made[n]...)
	}
	return all, nil
}

// whileCollecting does the same while garbage is collected, and reports whether that came to its end.
func (g *gcBench) whileCollecting(ctx context.Context) (times []time.Duration, done bool, err error) {
	collecting, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- g.collect(collecting) }()
	times, err = g.pushes(ctx)
	stop()
	if gerr := <-ended; gerr == nil {
		done = true
	} else if !errors.Is(gerr, context.Canceled) {
		err = errors.Join(err, gerr)
	}
	return times, done, err
}

// collect collects garbage. One that was interrupted may take a moment to end.
func (g *gcBench) collect(ctx context.Context) error {
	for {
		_, err := g.client.Collect(ctx, false)
		if refused, ok := errors.AsType[*apiclient.Error](err); !ok || refused.Status != http.StatusConflict {
			return err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// check finds out whether all garbage is gone and all that was pushed is there.
func (g *gcBench) check(ctx context.Context) error {
	r, err := g.client.Repositories(ctx, true, "", 1)
	if err != nil {
		return err
	}
	if want := int64(2 * len(g.all)); r.Total.Blobs != want {
		return fmt.Errorf("%d blobs are left, want %d", r.Total.Blobs, want)
	}
	for _, a := range g.all {
		if err := g.side.check(ctx, a); err != nil {
			return err
		}
		if _, err := g.side.pull(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// fillGarbage makes blobs that no manifest needs.
func fillGarbage(ctx context.Context, db *sql.DB, dir string) error {
	for _, q := range []string{
		`INSERT INTO repository (id, name, created) SELECT 1, 'garbage', ?1`,
		fmt.Sprintf(numbers+`INSERT INTO blob (id, digest, size, created, key) SELECT n, printf('sha256:%%064x', n),
			CASE WHEN n <= %[1]d THEN %[2]d ELSE %[3]d END, 1, CASE WHEN n <= %[1]d THEN printf('%%032x', n) END FROM c`,
			garbageFiles, garbageFile, garbageSmall),
		`INSERT INTO blob_data (blob, data) SELECT id, randomblob(size) FROM blob WHERE key IS NULL AND id <= ?1`,
		`INSERT INTO repo_blob (repo, blob, touched) SELECT 1, id, 1 FROM blob WHERE id <= ?1`,
	} {
		if _, err := db.ExecContext(ctx, q, garbageBlobs); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	below := filepath.Join(dir, "blobs", "00")
	if err := os.MkdirAll(below, 0o700); err != nil {
		return err
	}
	for n := range garbageFiles {
		if err := os.WriteFile(filepath.Join(below, fmt.Sprintf("%032x", n+1)), noise[:garbageFile], 0o600); err != nil {
			return err
		}
	}
	return nil
}
