package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// PathBackup is where the state of the server is asked for.
const PathBackup = "/api/v1/backup"

// A Backup says what is to be in a backup of the state.
type Backup struct {
	Logs   bool `json:"logs,omitempty"`
	NoKeys bool `json:"noKeys,omitempty"`
}

// backupPause is how long nothing may come of a backup before it is given up.
const backupPause = 2 * time.Minute

// Backup asks for a backup and returns it as it is made; the caller closes it. Only one that has been verified to its
// end is whole.
func (c *Client) Backup(ctx context.Context, b Backup) (io.ReadCloser, error) {
	body, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	silent := fmt.Errorf("server at %s: nothing came for %s", c.BaseURL, backupPause)
	s := &steadyBody{cancel: cancel, silent: silent}
	s.watchdog = time.AfterFunc(backupPause, func() { s.given.Store(true); cancel(silent) })
	req, err := c.request(ctx, http.MethodPost, PathBackup, bytes.NewReader(body))
	if err == nil {
		var resp *http.Response
		if resp, err = c.do(req); err == nil {
			s.ReadCloser = resp.Body
			return s, nil
		}
	}
	s.end()
	return nil, s.explain(err)
}

// A steadyBody ends with an error when nothing comes for too long.
type steadyBody struct {
	io.ReadCloser
	watchdog *time.Timer
	given    atomic.Bool // up
	silent   error
	cancel   context.CancelCauseFunc
}

// Read implements io.Reader.
func (s *steadyBody) Read(b []byte) (int, error) {
	s.watchdog.Reset(backupPause)
	n, err := s.ReadCloser.Read(b)
	return n, s.explain(err)
}

// Close implements io.Closer.
func (s *steadyBody) Close() error {
	s.end()
	return s.ReadCloser.Close()
}

func (s *steadyBody) end() {
	s.watchdog.Stop()
	s.cancel(nil)
}

func (s *steadyBody) explain(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && s.given.Load() {
		return s.silent
	}
	return err
}
