package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"kiln/internal/apiclient"
)

const (
	// sendAtOnce is the size of the contents up to which asking what is missing costs more than
	// sending everything.
	sendAtOnce = 1 << 20
	maxAnswer  = 64 << 20 // bytes of an answer: ten million indexes
)

// Key returns the key of a directory on this machine: where its tree comes from, whatever it holds.
func Key(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("context %q: %w", dir, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(host + "\x00" + abs))
	return hex.EncodeToString(sum[:]), nil
}

// Upload brings the tree of the directory dir to the server: it sends what the newest context under
// key lacks. It is idempotent. progress, if not nil, is told the bytes of contents sent so far and of
// all that will be; its calls do not overlap.
//
// It returns ErrChanged if a file is no longer what the tree says: scan again; *apiclient.Error for
// what the server answers, and apiclient.ErrUnreachable if there is none.
func Upload(ctx context.Context, hc *http.Client, baseURL, token, key string, tree *Tree, dir string, progress func(done, total int64)) error {
	u := &uploader{
		hc: hc, base: strings.TrimSuffix(baseURL, "/") + apiclient.PathContexts, token: token, key: key,
		tree: tree, dir: dir, compress: worthCompressing(baseURL), progress: progress,
	}
	if tree.Size() <= sendAtOnce {
		return u.put(ctx, Missing{ID: tree.ID(), Entries: tree.contents()})
	}
	err := u.send(ctx)
	if e, ok := errors.AsType[*apiclient.Error](err); ok && e.Status == http.StatusConflict {
		err = u.send(ctx) // what was compared with is gone: compare again
	}
	return err
}

// worthCompressing reports whether the way to the server is slower than a compressor. An address of
// this machine is not.
func worthCompressing(baseURL string) bool {
	u, err := url.Parse(baseURL)
	if err != nil {
		return false
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	return host != "localhost" && (ip == nil || !ip.IsLoopback())
}

type uploader struct {
	hc               *http.Client
	base, token, key string
	tree             *Tree
	dir              string
	compress         bool
	progress         func(done, total int64)
}

func (u *uploader) send(ctx context.Context) error {
	var m Missing
	head := func(w io.Writer) error { return writeHead(w, u.tree) }
	if err := u.do(ctx, http.MethodPost, u.base+"?key="+url.QueryEscape(u.key), head, &m); err != nil {
		return err
	}
	if m.Exists {
		return nil
	}
	for n, i := range m.Entries {
		if i < 0 || i >= len(u.tree.Entries) || n > 0 && i <= m.Entries[n-1] || !u.tree.Entries[i].Mode.IsRegular() {
			return fmt.Errorf("%s: asks for entry %d, which is not a file of the context", u.base, i)
		}
	}
	m.ID = u.tree.ID()
	return u.put(ctx, m)
}

func (u *uploader) put(ctx context.Context, m Missing) error {
	q := url.Values{"key": {u.key}}
	if m.Base != "" {
		q.Set("base", m.Base)
	}
	body := func(w io.Writer) error { return u.writeBody(ctx, w, m.Entries) }
	return u.do(ctx, http.MethodPut, u.base+"/"+m.ID+"?"+q.Encode(), body, nil)
}

// writeBody writes an upload with the contents of the entries.
func (u *uploader) writeBody(ctx context.Context, w io.Writer, entries []int) error {
	if err := writeHead(w, u.tree); err != nil {
		return err
	}
	c := &counter{w: w, progress: u.progress}
	for _, i := range entries {
		c.total += u.tree.Entries[i].Size
	}
	buf := make([]byte, 128<<10)
	for _, i := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeMark(w, i); err != nil {
			return err
		}
		if err := u.writeFile(c, &u.tree.Entries[i], buf); err != nil {
			return err
		}
	}
	return writeMark(w, -1)
}

// writeFile writes a file's content and makes sure that it is the one of the tree.
func (u *uploader) writeFile(w io.Writer, e *Entry, buf []byte) error {
	f, fi, err := openRegular(filepath.Join(u.dir, filepath.FromSlash(e.Path)))
	if err != nil {
		return fmt.Errorf("context %q: %w", u.dir, changedIfGone(err))
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(w, sum)}, io.LimitReader(f, e.Size), buf)
	if err != nil {
		return err
	}
	if n != e.Size || fi.Size() != e.Size || Sum(sum.Sum(nil)) != e.Digest {
		return fmt.Errorf("context %q: %s: %w", u.dir, e.Path, ErrChanged)
	}
	return nil
}

func changedIfGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, ErrChanged)
	}
	return err
}

// onlyWriter hides other methods, so that a copy uses its buffer.
type onlyWriter struct{ io.Writer }

// A counter reports what passes through it.
type counter struct {
	w           io.Writer
	done, total int64
	progress    func(done, total int64)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.done += int64(n)
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
	return n, err
}

// do sends what write writes and decodes the answer into out, if that is not nil. It returns only
// when write has.
func (u *uploader) do(ctx context.Context, method, addr string, write func(io.Writer) error, out any) error {
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, method, addr, pr)
	if err != nil {
		return fmt.Errorf("server address: %w", err)
	}
	req.Header.Set("Content-Type", "application/vnd.kiln.context-upload.v1")
	if u.token != "" {
		req.Header.Set("Authorization", "Bearer "+u.token)
	}
	if u.compress {
		req.Header.Set("Content-Encoding", "zstd")
	}
	written := make(chan error, 1)
	go func() {
		err := u.writeTo(pw, write)
		pw.CloseWithError(err)
		written <- err
	}()
	resp, err := u.hc.Do(req)
	pr.CloseWithError(errAnswered) // nobody reads the rest
	writeErr := <-written
	if errors.Is(writeErr, errAnswered) || errors.Is(writeErr, io.ErrClosedPipe) {
		writeErr = nil // the server's answer tells more
	}
	switch {
	case writeErr != nil:
		if resp != nil {
			resp.Body.Close()
		}
		return writeErr
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w: %w", apiclient.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	return decodeAnswer(resp, out)
}

var errAnswered = errors.New("request is over")

// writeTo runs write on a buffered and, if that pays, compressing writer.
func (u *uploader) writeTo(w io.Writer, write func(io.Writer) error) error {
	bw := bufio.NewWriterSize(w, 64<<10)
	if !u.compress {
		if err := write(bw); err != nil {
			return err
		}
		return bw.Flush()
	}
	zw, err := zstd.NewWriter(bw, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	if err := write(zw); err != nil {
		return err
	}
	if err := zw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

func decodeAnswer(resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%w: %w", apiclient.ErrUnreachable, err)
	}
	if resp.StatusCode/100 != 2 {
		var wrapped struct {
			Error *apiclient.Error `json:"error"`
		}
		if json.Unmarshal(b, &wrapped) != nil || wrapped.Error == nil {
			text := string(bytes.TrimSpace(b[:min(len(b), 256)]))
			wrapped.Error = &apiclient.Error{Code: apiclient.CodeInternal, Message: fmt.Sprintf("server answers %s: %q", resp.Status, text)}
		}
		wrapped.Error.Status = resp.StatusCode
		return wrapped.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", resp.Request.Method, resp.Request.URL.Path, err)
	}
	return nil
}
