package apiclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"kiln/internal/run"
)

const (
	callTimeout   = 30 * time.Second // of one request and its answer, streams excepted
	dialTimeout   = 5 * time.Second
	maxAnswer     = 64 << 20 // bytes of a JSON answer
	maxErrorBody  = 1 << 20  // bytes of an error's JSON
	maxErrorWords = 300      // bytes shown of an error answer that is not kiln's
)

// A Client talks to one server. Its fields are set before the first call and not changed after; its
// methods may be called concurrently.
type Client struct {
	BaseURL string // scheme and host, such as http://127.0.0.1:7070; see CheckURL
	Token   string // Bearer token; empty sends none
	// HTTP makes the requests. Its Timeout must be zero or streams end early. Nil means
	// http.DefaultClient; NewHTTP returns a better one.
	HTTP *http.Client
	// Patience is how long Follow tries to get back to a server that has answered before. Zero
	// means a minute.
	Patience time.Duration
	// Lost, if not nil, is told when Follow has lost the server, once per loss, and why.
	Lost func(error)

	met atomic.Bool // the server has answered
}

// CheckURL reports what is wrong with a server's address.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return fmt.Errorf("server address %q: want http://HOST:PORT or https://HOST[:PORT]", s)
	case u.User != nil:
		return fmt.Errorf("server address of host %q: must not carry a password; use a token", u.Host)
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("server address %q: must not carry a path", s)
	}
	return nil
}

// NewHTTP returns an HTTP client for the server at baseURL. It keeps one connection for all calls,
// follows no redirects, and asks no proxy about a loopback address. Trust is how the certificate of a
// server with TLS is checked; nil means as this system does.
func NewHTTP(baseURL string, trust *tls.Config) *http.Client {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout: dialTimeout,
		TLSClientConfig:     trust,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     90 * time.Second,
	}
	if u, err := url.Parse(baseURL); err == nil && loopback(u.Hostname()) {
		t.DisableCompression = true // costs time, and there is no wire to spare
	} else {
		t.Proxy = http.ProxyFromEnvironment
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Submit asks for a run and returns it as queued. Without a key it mints one; a connection that
// breaks before the answer is tried again once, which the key makes harmless.
func (c *Client) Submit(ctx context.Context, s Submit) (run.Run, error) {
	if s.Key == "" {
		s.Key = rand.Text()
	}
	return c.askForRun(ctx, callTimeout, PathRuns, s)
}

// Rerun asks for a repetition of a run and returns the new run as queued. A fresh one of a
// task's run uses the source and base images of now.
func (c *Client) Rerun(ctx context.Context, id string, fresh bool) (run.Run, error) {
	if err := checkID(id); err != nil {
		return run.Run{}, err
	}
	return c.askForRun(ctx, taskRunTimeout, RerunPath(id), Rerun{Key: rand.Text(), Fresh: fresh})
}

func (c *Client) askForRun(ctx context.Context, limit time.Duration, path string, body any) (run.Run, error) {
	var r run.Run
	err := c.callFor(ctx, limit, http.MethodPost, path, body, &r)
	if errors.Is(err, errBroken) {
		err = c.callFor(ctx, limit, http.MethodPost, path, body, &r)
	}
	if err == nil && !run.ValidID(r.ID) {
		return run.Run{}, fmt.Errorf("%s: the answer names no run", path)
	}
	return r, err
}

// Runs lists runs, newest first.
func (c *Client) Runs(ctx context.Context, q RunsQuery) ([]run.Run, error) {
	var page Runs
	err := c.call(ctx, http.MethodGet, PathRuns+q.encode(), nil, &page)
	return page.Runs, err
}

// Run returns one run.
func (c *Client) Run(ctx context.Context, id string) (run.Run, error) {
	var r run.Run
	if err := checkID(id); err != nil {
		return r, err
	}
	err := c.call(ctx, http.MethodGet, RunPath(id), nil, &r)
	return r, err
}

// Cancel asks the server to end a run and returns the run as it is then; its end comes later.
func (c *Client) Cancel(ctx context.Context, id string) (run.Run, error) {
	var r run.Run
	if err := checkID(id); err != nil {
		return r, err
	}
	err := c.call(ctx, http.MethodPost, CancelPath(id), struct{}{}, &r)
	return r, err
}

// Status describes the server.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, PathStatus, nil, &s)
	return s, err
}

func checkID(id string) error {
	if !run.ValidID(id) {
		return &Error{Status: http.StatusNotFound, Code: CodeNotFound, Message: fmt.Sprintf("run %q: not a run ID", id)}
	}
	return nil
}

// call sends one request and decodes the answer into out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callFor(ctx, callTimeout, method, path, in, out)
}

// callFor is call with another bound of the time it takes.
func (c *Client) callFor(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	return c.callWith(ctx, limit, nil, method, path, in, out)
}

// callWith is callFor with more header fields.
func (c *Client) callWith(ctx context.Context, limit time.Duration, header http.Header, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	maps.Copy(req.Header, header)
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return &unreachableError{url: c.BaseURL, err: err, broken: true}
	case len(b) > maxAnswer:
		return fmt.Errorf("%s %s: answer larger than %d bytes", method, path, maxAnswer)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: answer: %w; is %s a kiln server?", method, path, err, c.BaseURL)
	}
	return nil
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	if err := CheckURL(c.BaseURL); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.BaseURL, "/")+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	return req, nil
}

// do sends req. It returns a 2xx answer, whose body the caller closes, or an error.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(req)
	if err != nil {
		if cause := context.Cause(req.Context()); errors.Is(cause, context.Canceled) {
			return nil, cause
		}
		var op *net.OpError
		broken := !(errors.As(err, &op) && op.Op == "dial")
		var ue *url.Error
		if errors.As(err, &ue) { // it repeats the address
			err = ue.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %s", callTimeout)
		}
		return nil, &unreachableError{url: c.BaseURL, err: err, broken: broken}
	}
	c.met.Store(true)
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, decodeError(resp)
	}
	return resp, nil
}

// decodeError turns an answer that is not a 2xx into an *Error, also when it is not kiln's.
func decodeError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var body struct {
		Error *Error `json:"error"`
	}
	if err == nil && json.Unmarshal(b, &body) == nil && body.Error != nil && body.Error.Code != "" {
		body.Error.Status = resp.StatusCode
		return body.Error
	}
	words, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if len(words) > maxErrorWords {
		words = strings.ToValidUTF8(words[:maxErrorWords], "") + "..."
	}
	e := &Error{
		Status:  resp.StatusCode,
		Code:    codeOf(resp.StatusCode),
		Message: fmt.Sprintf("%s %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status),
	}
	if words != "" {
		e.Message += fmt.Sprintf(": %q", words)
	}
	return e
}

func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return CodeUnauthorized
	case http.StatusForbidden:
		return CodeForbidden
	case http.StatusNotFound:
		return CodeNotFound
	case http.StatusConflict:
		return CodeConflict
	case http.StatusRequestEntityTooLarge:
		return CodeTooLarge
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return CodeUnavailable
	case http.StatusInsufficientStorage:
		return CodeDiskFull
	}
	if status >= 500 {
		return CodeInternal
	}
	return CodeInvalid
}

// errBroken marks a connection that broke after it was made, so the request may have been served.
var errBroken = errors.New("connection broken")

type unreachableError struct {
	url    string
	err    error
	broken bool
}

func (e *unreachableError) Error() string { return fmt.Sprintf("server at %s: %v", e.url, e.err) }
func (e *unreachableError) Unwrap() error { return e.err }

func (e *unreachableError) Is(target error) bool {
	return target == ErrUnreachable || target == errBroken && e.broken
}
