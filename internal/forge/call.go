package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds of a call.
const (
	callTimeout = 15 * time.Second
	maxAnswer   = 1 << 20
	maxMessage  = 300 // bytes of what a forge says about an error
	maxWait     = 15 * time.Minute
)

// An Error is a forge's answer that is not a 2xx.
type Error struct {
	Status  int
	Message string // what was asked and what the forge says
	// Again is when a repetition may succeed; zero if nothing but a change of the request, or of the
	// token, can help.
	Again time.Duration
}

func (e *Error) Error() string { return e.Message }

// Unwrap makes ErrNotFound of a 404.
func (e *Error) Unwrap() error {
	if e.Status == http.StatusNotFound || e.Status == http.StatusGone {
		return ErrNotFound
	}
	return nil
}

// Permanent reports whether repeating what ended with err is of no use.
func Permanent(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Again == 0
}

// call makes one request of the API and decodes the answer into out, unless that is nil.
func (r *Repository) call(ctx context.Context, method, path string, in, out any) error {
	return r.callUpTo(ctx, maxAnswer, method, path, in, out)
}

// callUpTo is call with another bound of the answer, in bytes.
func (r *Repository) callUpTo(ctx context.Context, most int64, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %s", callTimeout))
	defer cancel()
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kiln")
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	r.authorize(req.Header, r.token)
	resp, err := r.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", r.name, method, path, unreachable(ctx, err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case resp.StatusCode/100 != 2:
		return r.refused(method, path, resp, answer)
	case err != nil:
		return fmt.Errorf("%s: %s %s: %w", r.name, method, path, unreachable(ctx, err))
	case int64(len(answer)) > most:
		return fmt.Errorf("%s: %s %s: the answer is above %d bytes", r.name, method, path, most)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: %s %s: the answer is not JSON; is %s the address of its API?", r.name, method, path, r.base)
	}
	return nil
}

// unreachable takes the address out of an error of a request, which repeats it, and tells of a timeout.
func unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// refused makes an error of an answer that is not a 2xx.
func (r *Repository) refused(method, path string, resp *http.Response, answer []byte) error {
	e := &Error{Status: resp.StatusCode, Again: again(resp)}
	said := strings.ReplaceAll(message(answer), r.token, "***")
	e.Message = fmt.Sprintf("%s: %s %s: %s", r.name, method, path, resp.Status)
	if said != "" {
		e.Message += fmt.Sprintf(": %q", said)
	}
	switch code := resp.StatusCode; {
	case code/100 == 3:
		e.Message += "; the repository has moved or its address begins with https://: give the new one"
	case e.Again == 0 && (code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusNotFound):
		e.Message += "; " + r.needs
	}
	return e
}

// message finds what a forge says about an error: every one of them has a message in its JSON.
func message(answer []byte) string {
	var said struct {
		Message any    `json:"message"` // GitLab's may be an object
		Error   string `json:"error"`
	}
	text := ""
	if json.Unmarshal(answer, &said) == nil {
		switch m := said.Message.(type) {
		case nil:
			text = said.Error
		case string:
			text = m
		default:
			if b, err := json.Marshal(m); err == nil {
				text = string(b)
			}
		}
	}
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return text
}

// again returns when a refused request may be repeated.
func again(resp *http.Response) time.Duration {
	h := resp.Header
	limited := resp.StatusCode == http.StatusForbidden && (h.Get("Retry-After") != "" || h.Get("X-RateLimit-Remaining") == "0")
	if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout && !limited {
		return 0
	}
	wait := 5 * time.Second
	if s, err := strconv.Atoi(h.Get("Retry-After")); err == nil && s > 0 {
		wait = time.Duration(min(s, 1<<20)) * time.Second
	} else if at, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil && limited {
		wait = time.Until(time.Unix(at, 0))
	}
	return min(max(wait, time.Second), maxWait)
}
