package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const busybox = "/bin/busybox"

// pushBase pushes a base image with busybox and the stamp program to s and returns its reference.
// The image is like no other one, so that builds on it share no cache.
func (l *lab) pushBase(ctx context.Context, s store) (string, error) {
	img, err := baseImage(l.stamp, unique())
	if err != nil {
		return "", fmt.Errorf("base image: %w", err)
	}
	ref, err := name.NewTag(s.host+"/bench/base:1", name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(s.auth())); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref.String(), nil
}

func baseImage(stamp, mark string) (v1.Image, error) {
	layer, err := baseLayer(stamp, mark)
	if err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil }
	l, err := tarball.LayerFromOpener(opener)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config.Env = "linux", "amd64", []string{"PATH=/bin"}
	return mutate.ConfigFile(img, cfg)
}

// baseLayer is an archive with the programs.
func baseLayer(stamp, mark string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct{ name, from string }{{"bin/busybox", busybox}, {"bin/stamp", stamp}} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		if err := addFile(w, f.name, data); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
		return nil, err
	}
	if err := addFile(w, "mark", []byte(mark)); err != nil {
		return nil, err
	}
	return buf.Bytes(), w.Close()
}

func addFile(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// lookUp returns the digest of an image in s; an image that is not there is an error.
func lookUp(ctx context.Context, s store, image string) (string, error) {
	ref, err := name.NewTag(image, name.Insecure)
	if err != nil {
		return "", err
	}
	d, err := remote.Head(ref, remote.WithContext(ctx), remote.WithAuth(s.auth()))
	if err != nil {
		return "", fmt.Errorf("%s is not in the registry: %w", image, err)
	}
	return d.Digest.String(), nil
}
