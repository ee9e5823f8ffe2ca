package apiclient_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kiln/internal/apiclient"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A peer that is gone without a word closes no connection: only its silence tells.
func TestFollowLeavesASilentConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		transport := roundTripper(func(r *http.Request) (*http.Response, error) {
			requests++
			resp := &http.Response{StatusCode: http.StatusOK, Request: r}
			if requests > 1 {
				resp.Body = io.NopCloser(strings.NewReader("event: end\ndata: {}\n\n"))
				return resp, nil
			}
			pr, pw := io.Pipe()
			resp.Body = pr
			go func() {
				for range 10 { // alive for longer than silence is borne
					_, _ = io.WriteString(pw, ": beat\n\n")
					time.Sleep(apiclient.StreamBeat)
				}
				<-r.Context().Done()
				pw.CloseWithError(context.Cause(r.Context()))
			}()
			return resp, nil
		})
		c := &apiclient.Client{BaseURL: "http://127.0.0.1:1", HTTP: &http.Client{Transport: transport}}
		began := time.Now()
		if err := c.Follow(t.Context(), runID, "", true, nil); err != nil || requests != 2 {
			t.Errorf("Follow = %v after %d requests, want nil after 2", err, requests)
		}
		if d := time.Since(began); d < 11*apiclient.StreamBeat || d > 14*apiclient.StreamBeat {
			t.Errorf("the connection was left after %s", d)
		}
	})
}

func TestBackupIsGivenUpWhenTheServerFallsSilent(t *testing.T) {
	t.Parallel()
	for _, pieces := range []int{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			transport := roundTripper(func(r *http.Request) (*http.Response, error) {
				if pieces == 0 {
					<-r.Context().Done()
					return nil, context.Cause(r.Context())
				}
				pr, pw := io.Pipe()
				go func() {
					for range pieces {
						_, _ = io.WriteString(pw, "a piece")
						time.Sleep(time.Minute)
					}
					<-r.Context().Done()
					pw.CloseWithError(context.Canceled)
				}()
				return &http.Response{StatusCode: http.StatusOK, Request: r, Body: pr}, nil
			})
			c := &apiclient.Client{BaseURL: "http://127.0.0.1:1", HTTP: &http.Client{Transport: transport}}
			n := 0
			body, err := c.Backup(t.Context(), apiclient.Backup{})
			if err == nil {
				var b []byte
				b, err = io.ReadAll(body)
				n = len(b)
				_ = body.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "nothing came for 2m0s") || n != pieces*len("a piece") {
				t.Errorf("after %d pieces: %d bytes, %v", pieces, n, err)
			}
		})
	}
}
