package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// tinyPush is what a client does to push an image of one small layer.
func tinyPush(t testing.TB, r *registrytest.Registry, repo, tag string, layer []byte) {
	config := fmt.Appendf(nil, `{"n":%q}`, digest.FromBytes(layer))
	l := digest.FromBytes(layer).String()
	want(t, r, http.StatusNotFound, "HEAD", "/v2/"+repo+"/blobs/"+l, nil)
	putBlob(t, r, repo, layer)
	c := putBlob(t, r, repo, config)
	want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+tag, manifestOf(c, len(config), l, len(layer)), "Content-Type", ociManifest)
}

func reportP50(b *testing.B, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, "p99-ms")
}

func BenchmarkTinyPush(b *testing.B) {
	r := registrytest.Start(b)
	var took []time.Duration
	for i := range b.N {
		layer := bytes.Repeat(fmt.Appendf(nil, "%016d", i), 64)
		start := time.Now()
		tinyPush(b, r, "bench/app", fmt.Sprint("t", i), layer)
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}

func BenchmarkTinyPushConcurrent(b *testing.B) {
	r := registrytest.Start(b)
	var n atomic.Int64
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			tinyPush(b, r, "bench/app", fmt.Sprint("t", i), bytes.Repeat(fmt.Appendf(nil, "%016d", i), 64))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
}

func BenchmarkManifestHead(b *testing.B) {
	r := registrytest.Start(b)
	tinyPush(b, r, "bench/app", "1", []byte("x"))
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		want(b, r, http.StatusOK, "HEAD", "/v2/bench/app/manifests/1", nil)
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}

// BenchmarkPublish publishes an image under two tags, alone and with a provenance.
func BenchmarkPublish(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkPublish(b, 0) })
	b.Run("provenance", func(b *testing.B) { benchmarkPublish(b, 3000) })
}

// benchmarkPublish attaches a document of that size, which is another one each time.
func benchmarkPublish(b *testing.B, size int) {
	r := registrytest.Start(b)
	ctx := context.Background()
	if err := r.Store.RaiseFence(ctx, "r1", 1); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := range b.N {
		tinyPush(b, r, "kiln/staging/r1", "1", fmt.Append(nil, i))
		d, err := r.Store.Resolve(ctx, "kiln/staging/r1", "1")
		if err != nil {
			b.Fatal(err)
		}
		p := registry.Publication{Run: "r1", Attempt: 1, Step: "build", Tags: []registry.Tag{
			{Repository: "bench/app", Tag: fmt.Sprint("u", i), Digest: d.Digest, Source: "kiln/staging/r1", Unique: true},
			{Repository: "bench/app", Tag: "latest", Digest: d.Digest, Source: "kiln/staging/r1"},
		}}
		if size > 0 {
			p.Attachments = []registry.Attachment{{Repository: "bench/app", Subject: d.Digest, Type: "application/vnd.in-toto+json",
				Content: fmt.Appendf(nil, "%0*d", size, i)}}
		}
		start := time.Now()
		_, err = r.Store.Publish(ctx, p)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}

// BenchmarkLargePush sends a layer of 64 MiB.
func BenchmarkLargePush(b *testing.B) {
	r := registrytest.Start(b)
	blob := make([]byte, 64<<20)
	b.SetBytes(int64(len(blob)))
	b.StopTimer()
	for i := range b.N {
		copy(blob, fmt.Sprint(i))
		d := digest.FromBytes(blob).String()
		b.StartTimer()
		res, _ := want(b, r, http.StatusAccepted, "POST", "/v2/bench/app/blobs/uploads/", nil)
		want(b, r, http.StatusCreated, "PUT", res.Header.Get("Location")+"?digest="+d, blob)
		b.StopTimer()
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		s, err := registry.Open(dir, registry.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
