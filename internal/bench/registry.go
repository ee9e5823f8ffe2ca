package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// A depository is a registry that is measured by bare requests, the same for all of them.
type depository struct {
	store
	name   string
	server *process
	http   *http.Client
}

const (
	layersAtOnce = 4 // as the usual clients push and pull them
	connections  = 16

	imageManifest = "application/vnd.oci.image.manifest.v1+json"
)

// startDepositories starts kiln as it comes, docker-registry and crane's registry, which syncs nothing and
// keeps manifests in memory.
func (l *lab) startDepositories(ctx context.Context) (kiln *kilnServer, all []*depository, err error) {
	if kiln, err = l.startKiln(ctx, ""); err != nil {
		return nil, nil, err
	}
	all = append(all, newDepository("kiln", kiln.store, kiln.process))
	reg, err := l.startRegistry(ctx)
	if err != nil {
		return nil, nil, err
	}
	all = append(all, newDepository("docker-registry", reg, l.processes[len(l.processes)-1]))
	dir, err := l.mkdir("crane")
	if err != nil {
		return nil, nil, err
	}
	host, err := freeAddress(ctx)
	if err != nil {
		return nil, nil, err
	}
	p, err := l.start("crane", exec.CommandContext(context.WithoutCancel(ctx), l.crane, "registry", "serve", "--disk", dir, "--address", host))
	if err != nil {
		return nil, nil, err
	}
	all = append(all, newDepository("crane", store{host: host}, p))
	return kiln, all, p.await(ctx, func(ctx context.Context) error { return get(ctx, "http://"+host+"/v2/") })
}

func newDepository(name string, s store, p *process) *depository {
	return &depository{name: name, store: s, server: p, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, DisableCompression: true, WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10}}}
}

// ask makes a request whose answer must have that status, and hands over its body.
func (d *depository) ask(ctx context.Context, method, path string, body io.Reader, size int64, want int, take func(io.Reader) error) (http.Header, error) {
	if strings.HasPrefix(path, "/") {
		path = "http://" + d.host + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if d.password != "" {
		req.SetBasicAuth("kiln", d.password)
	}
	req.Header.Set("Accept", imageManifest)
	req.Header.Set("Content-Type", "application/octet-stream")
	if method == http.MethodPut && strings.Contains(path, "/manifests/") {
		req.Header.Set("Content-Type", imageManifest)
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, showOutput))
		return nil, fmt.Errorf("%s: %s %s: %s: %s", d.name, method, path, resp.Status, b)
	}
	if take == nil {
		take = func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	}
	return resp.Header, take(resp.Body)
}

// A mass is a blob that is made while it is read: random, and like no other one.
type mass struct {
	mark   [16]byte
	size   int64
	digest string
}

const massBlock = 1 << 20

// noise is what a mass repeats, with its mark at the begin of each block.
var noise = func() []byte {
	b := make([]byte, massBlock)
	_, _ = rand.Read(b) // never fails
	return b
}()

func newMass(size int64) mass {
	m := mass{size: size}
	_, _ = rand.Read(m.mark[:])
	h := sha256.New()
	_, _ = io.Copy(h, m.reader()) // from memory
	m.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return m
}

func (m mass) reader() io.Reader { return &massReader{mass: m} }

type massReader struct {
	mass
	at int64
}

func (r *massReader) Read(p []byte) (int, error) {
	if r.at == r.size {
		return 0, io.EOF
	}
	off := r.at % massBlock
	var head [24]byte
	copy(head[:], r.mark[:])
	binary.LittleEndian.PutUint64(head[16:], uint64(r.at/massBlock))
	from := noise[off:]
	if off < int64(len(head)) {
		from = head[off:]
	}
	n := copy(p[:min(int64(len(p)), r.size-r.at)], from)
	r.at += int64(n)
	return n, nil
}

// An artwork is an image of masses.
type artwork struct {
	repository, tag  string
	layers           []mass
	config, manifest []byte
	digest           string // of the manifest
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

func newArtwork(repository string, layers int, size int64) (artwork, error) {
	a := artwork{repository: repository, tag: unique(), config: fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","created_by":%q}`, unique())}
	m := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, imageManifest, descriptor{"application/vnd.oci.image.config.v1+json", digestOf(a.config), int64(len(a.config))}, nil}
	for range layers {
		l := newMass(size)
		a.layers = append(a.layers, l)
		m.Layers = append(m.Layers, descriptor{"application/vnd.oci.image.layer.v1.tar", l.digest, l.size})
	}
	var err error
	a.manifest, err = json.Marshal(m)
	a.digest = digestOf(a.manifest)
	return a, err
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// push does what a client does to push an image, and returns how long it takes.
func (d *depository) push(ctx context.Context, a artwork) (time.Duration, error) {
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for _, l := range a.layers {
		g.Go(func() error { return d.upload(gctx, a.repository, l.digest, l.reader(), l.size) })
	}
	err := g.Wait()
	if err == nil {
		err = d.upload(ctx, a.repository, digestOf(a.config), bytes.NewReader(a.config), int64(len(a.config)))
	}
	if err == nil {
		_, err = d.ask(ctx, http.MethodPut, "/v2/"+a.repository+"/manifests/"+a.tag, bytes.NewReader(a.manifest), int64(len(a.manifest)), http.StatusCreated, nil)
	}
	return time.Since(begin), err
}

func (d *depository) upload(ctx context.Context, repository, digest string, content io.Reader, size int64) error {
	base := "/v2/" + repository + "/blobs/"
	if _, err := d.ask(ctx, http.MethodHead, base+digest, nil, 0, http.StatusNotFound, nil); err != nil {
		return err
	}
	h, err := d.ask(ctx, http.MethodPost, base+"uploads/", nil, 0, http.StatusAccepted, nil)
	if err != nil {
		return err
	}
	to := h.Get("Location")
	separator := "?"
	if strings.Contains(to, "?") {
		separator = "&"
	}
	_, err = d.ask(ctx, http.MethodPut, to+separator+"digest="+digest, content, size, http.StatusCreated, nil)
	return err
}

// check finds out whether an image is there.
func (d *depository) check(ctx context.Context, a artwork) error {
	h, err := d.ask(ctx, http.MethodHead, "/v2/"+a.repository+"/manifests/"+a.tag, nil, 0, http.StatusOK, nil)
	if err == nil && h.Get("Docker-Content-Digest") != a.digest {
		err = fmt.Errorf("%s: tag %s is %s, want %s", d.name, a.tag, h.Get("Docker-Content-Digest"), a.digest)
	}
	return err
}

// pull reads an image, and returns how long it takes. What is read is not hashed: a client would, and it would be
// the same time for all.
func (d *depository) pull(ctx context.Context, a artwork) (time.Duration, error) {
	begin := time.Now()
	_, err := d.ask(ctx, http.MethodGet, "/v2/"+a.repository+"/manifests/"+a.tag, nil, 0, http.StatusOK, func(r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(b, a.manifest) {
			err = fmt.Errorf("%s: the manifest of %s is another one", d.name, a.tag)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for _, l := range a.layers {
		g.Go(func() error {
			_, err := d.ask(gctx, http.MethodGet, "/v2/"+a.repository+"/blobs/"+l.digest, nil, 0, http.StatusOK, func(r io.Reader) error {
				n, err := io.Copy(struct{ io.Writer }{io.Discard}, r)
				if n != l.size {
					err = errors.Join(err, errors.New(d.name+": a blob has "+strconv.FormatInt(n, 10)+" bytes"))
				}
				return err
			})
			return err
		})
	}
	err = g.Wait()
	return time.Since(begin), err
}
