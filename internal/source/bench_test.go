package source

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manyFiles writes n files of about 3 KB each, 100 in a directory.
func manyFiles(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	files := map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n"}
	for i := range n - 1 {
		files[fmt.Sprintf("d%03d/f%05d.go", i/100, i)] = strings.Repeat(fmt.Sprintf("line %d of a file\n", i), 150)
	}
	write(b, dir, files)
	return dir
}

func BenchmarkScan(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := manyFiles(b, n)
			for b.Loop() {
				scan(b, dir, ScanOptions{}).ID()
			}
		})
	}
}

// BenchmarkReadFiles is what BenchmarkScan/10000 compares with: walking and reading, no more.
func BenchmarkReadFiles(b *testing.B) {
	dir := manyFiles(b, 10_000)
	for b.Loop() {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				_, err = os.ReadFile(p)
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpload is the upload after a change of one file of 10 or 10,000.
func BenchmarkUpload(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := manyFiles(b, n)
			s := startServer(b)
			s.upload(b, dir)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				write(b, dir, map[string]string{"d000/f00001.go": fmt.Sprint("change ", i)})
				tree := scan(b, dir, ScanOptions{})
				b.StartTimer()
				if err := Upload(b.Context(), http.DefaultClient, s.url, "", "key of "+dir, tree, dir, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpenAndWalk(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := manyFiles(b, n)
			s := startServer(b)
			id, o := s.upload(b, dir).ID(), s.local(b)
			for b.Loop() {
				err := open(b, o, id).Walk(b.Context(), "/", func(_ string, d fs.DirEntry, err error) error {
					if err == nil {
						_, err = d.Info()
					}
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadAll reads 10,000 files through a source.
func BenchmarkReadAll(b *testing.B) {
	dir := manyFiles(b, 10_000)
	s := startServer(b)
	id := s.upload(b, dir).ID()
	for name, o := range map[string]*Opener{"local": s.local(b), "remote": s.remote(b)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				src := open(b, o, id)
				for i := range src.entries {
					if !src.entries[i].Mode.IsRegular() {
						continue
					}
					f, err := src.Open(src.entries[i].Path)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, f); err != nil {
						b.Fatal(err)
					}
					f.Close()
				}
			}
		})
	}
}
