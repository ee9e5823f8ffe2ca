package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// PathWorkers lists the workers with GET; POST .../{worker}/drain and .../{worker}/undrain say whether it takes runs.
const PathWorkers = "/api/v1/workers"

// Workers is the list of workers.
type Workers struct {
	Workers []Worker `json:"workers"`
}

// A Worker is a process that executes runs, or the name of one that is drained.
type Worker struct {
	Name      string    `json:"name"`
	State     string    `json:"state"` // Ready, Unfit, Draining, Drained or Gone
	Reason    string    `json:"reason,omitempty"`
	Pool      string    `json:"pool,omitempty"`
	Parallel  int       `json:"parallel,omitempty"` // runs at once
	Runs      []string  `json:"runs"`               // in hand, by ID
	Platforms []string  `json:"platforms,omitempty"`
	BuildKit  string    `json:"buildkit,omitempty"` // version
	Address   string    `json:"address,omitempty"`  // of the build daemon; empty is its own
	Version   string    `json:"version,omitempty"`
	Host      string    `json:"host,omitempty"`
	Started   time.Time `json:"started,omitzero"`
}

// States of a worker.
const (
	WorkerReady    = "Ready"
	WorkerUnfit    = "Unfit"    // its build daemon cannot be reached
	WorkerDraining = "Draining" // it finishes what it has in hand
	WorkerDrained  = "Drained"
	WorkerGone     = "Gone" // drained, and not running
)

// Workers lists the workers by name.
func (c *Client) Workers(ctx context.Context) ([]Worker, error) {
	var list Workers
	err := c.call(ctx, http.MethodGet, PathWorkers, nil, &list)
	return list.Workers, err
}

// DrainWorker has a worker take no more runs, or some again. It returns the worker as it is then.
func (c *Client) DrainWorker(ctx context.Context, name string, drain bool) (Worker, error) {
	verb := "/undrain"
	if drain {
		verb = "/drain"
	}
	var w Worker
	err := c.call(ctx, http.MethodPost, PathWorkers+"/"+url.PathEscape(name)+verb, nil, &w)
	return w, err
}
