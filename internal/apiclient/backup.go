package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
)

// PathBackup is where the state of the server is asked for.
const PathBackup = "/api/v1/backup"

// A Backup says what is to be in a backup of the state.
type Backup struct {
	Logs   bool `json:"logs,omitempty"`
	NoKeys bool `json:"noKeys,omitempty"`
}

// Backup asks for a backup and returns it as it is made; the caller closes it. Only one that has been verified to its
// end is whole.
func (c *Client) Backup(ctx context.Context, b Backup) (io.ReadCloser, error) {
	body, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	req, err := c.request(ctx, http.MethodPost, PathBackup, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
