package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// A Client moves fences, publishes and resolves in a registry that another process serves. Its errors satisfy
// errors.Is like those of the Store's methods. It does not retry: everything it does may be repeated. Each method
// takes the token to show.
type Client struct {
	base string
	hc   *http.Client
}

// NewClient returns a Client of the registry at baseURL, which is the part before /v2/. A nil hc
// means http.DefaultClient.
func NewClient(baseURL string, hc *http.Client) *Client {
	if hc == nil {
		hc = http.DefaultClient
	}
	return &Client{base: strings.TrimSuffix(baseURL, "/"), hc: hc}
}

// RaiseFence does what [Store.RaiseFence] does.
func (c *Client) RaiseFence(ctx context.Context, token, run string, attempt int) error {
	return c.do(ctx, token, http.MethodPut, "fence/"+url.PathEscape(run), fence{attempt}, nil)
}

// FinishRun does what [Store.FinishRun] does.
func (c *Client) FinishRun(ctx context.Context, token, run string) error {
	return c.do(ctx, token, http.MethodDelete, "fence/"+url.PathEscape(run), nil, nil)
}

// Fences does what [Store.Fences] does.
func (c *Client) Fences(ctx context.Context, token, after string) ([]string, error) {
	var out fences
	err := c.do(ctx, token, http.MethodGet, "fences?after="+url.QueryEscape(after), nil, &out)
	return out.Runs, err
}

// Publish does what [Store.Publish] does.
func (c *Client) Publish(ctx context.Context, token string, p Publication) ([]Published, error) {
	var out publications
	err := c.do(ctx, token, http.MethodPost, "publish/"+url.PathEscape(p.Run), p, &out)
	return out.Published, err
}

// Resolve does what [Store.Resolve] does, but that it tells the digest, the media type and the size alone.
func (c *Client) Resolve(ctx context.Context, token, repository, ref string) (Descriptor, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.base+"/v2/"+repository+"/manifests/"+url.PathEscape(ref), nil)
	if err != nil {
		return Descriptor{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	req.SetBasicAuth("kiln", token)
	req.Header.Set("Accept", "*/*")
	res, err := c.hc.Do(req)
	if err != nil {
		return Descriptor{}, err
	}
	if err := res.Body.Close(); err != nil {
		return Descriptor{}, err
	}
	switch res.StatusCode {
	case http.StatusOK:
		return Descriptor{Digest: res.Header.Get("Docker-Content-Digest"), MediaType: res.Header.Get("Content-Type"), Size: res.ContentLength}, nil
	case http.StatusNotFound:
		return Descriptor{}, manifestUnknown(repository, ref)
	case http.StatusUnauthorized:
		return Descriptor{}, fmt.Errorf("%w: %s", ErrUnauthenticated, imageName(repository, clip(ref)))
	case http.StatusForbidden:
		return Descriptor{}, fmt.Errorf("%w: %s", ErrDenied, imageName(repository, clip(ref)))
	}
	return Descriptor{}, fmt.Errorf("%s %s: %s", req.Method, req.URL.Redacted(), res.Status)
}

func (c *Client) do(ctx context.Context, token, method, path string, in, out any) (err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/v2/.kiln/"+path, body)
	if err != nil {
		return err
	}
	req.SetBasicAuth("kiln", token)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.hc.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxControl))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Redacted(), err)
	}
	if res.StatusCode >= 300 {
		return remoteError(method, req.URL, res.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Redacted(), err)
	}
	return nil
}

// remoteError turns an answer back into the condition it was made from.
func remoteError(method string, u *url.URL, status int, body []byte) error {
	var we wireErrors
	if json.Unmarshal(body, &we) != nil || len(we.Errors) == 0 {
		return fmt.Errorf("%s %s: status %d without an explanation: is this a kiln registry?", method, u.Redacted(), status)
	}
	e := we.Errors[0]
	for _, row := range statusOf {
		if row.code == e.Code && row.status == status {
			return &answer{text: e.Message, is: row.err}
		}
	}
	return fmt.Errorf("%s %s: status %d: %s", method, u.Redacted(), status, e.Message)
}

// An answer is an error as the other side worded it.
type answer struct {
	text string
	is   error
}

func (a *answer) Error() string { return a.text }
func (a *answer) Unwrap() error { return a.is }
