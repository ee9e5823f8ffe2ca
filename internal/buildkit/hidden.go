package buildkit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"kiln/internal/solve"
)

// execute has the daemon solve b as opt says. If the history of the image would show what b hides, the
// frontend's result passes through here before the daemon makes an image of it: a configuration with the
// values is never stored.
func (s *runSession) execute(ctx context.Context, b solve.Build, opt client.SolveOpt, status chan *client.SolveStatus, log solve.LogFunc) (*client.SolveResponse, error) {
	hidden := hiddenOf(b)
	if len(hidden.values) == 0 {
		return s.client.bk.Solve(ctx, nil, opt, status)
	}
	req := gwclient.SolveRequest{Frontend: opt.Frontend}
	return s.client.bk.Build(ctx, opt, "", func(ctx context.Context, gw gwclient.Client) (*gwclient.Result, error) {
		req.FrontendOpt = maps.Clone(gw.BuildOpts().Opts) // those of opt, and the caches to read
		res, err := gw.Solve(ctx, req)
		if err != nil {
			return nil, err
		}
		shown := false
		for key, config := range res.Metadata {
			if key != exptypes.ExporterImageConfigKey && !strings.HasPrefix(key, exptypes.ExporterImageConfigKey+"/") {
				continue // the latter of a platform
			}
			masked, left, err := hidden.mask(config)
			if err != nil {
				return nil, fmt.Errorf("configuration of the image: %w", err)
			}
			res.Metadata[key], shown = masked, shown || left
		}
		if shown {
			say(log, "warning: the image's configuration holds the value of a secret, by an ENV or LABEL of the Dockerfile: whoever can pull the image can read it")
		}
		return res, nil
	}, status)
}

// hidden is what the history of an image must not show.
type hidden struct {
	values []string // the longest first
	args   []string // K=V of the build arguments whose value is one of them
}

// hiddenOf returns what b hides of what its build arguments hold: nothing else finds its way into a history.
func hiddenOf(b solve.Build) hidden {
	var h hidden
	for _, v := range b.Hidden {
		used := false
		for k, arg := range b.BuildArgs {
			if v == "" || !strings.Contains(arg, v) {
				continue
			}
			if arg == v {
				h.args = append(h.args, k+"="+v)
			}
			used = used || arg == v || len(v) >= minSecret
		}
		if used {
			h.values = append(h.values, v)
		}
	}
	slices.SortFunc(h.values, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return h
}

// mask returns an image's configuration with a history that shows none of the values, and whether another
// part of it does.
func (h hidden) mask(config []byte) (masked []byte, shown bool, err error) {
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(config, &parts); err != nil {
		return nil, false, err
	}
	var history []ocispecs.History
	if raw, ok := parts["history"]; ok {
		if err := json.Unmarshal(raw, &history); err != nil {
			return nil, false, fmt.Errorf("history: %w", err)
		}
		for i := range history {
			history[i].CreatedBy = h.text(history[i].CreatedBy)
		}
		if parts["history"], err = json.Marshal(history); err != nil {
			return nil, false, err
		}
	}
	shown = slices.ContainsFunc(h.values, func(v string) bool {
		quoted, err := json.Marshal(v)
		return err == nil && len(v) >= minSecret && bytes.Contains(parts["config"], bytes.Trim(quoted, `"`))
	})
	masked, err = json.Marshal(parts)
	return masked, shown, err
}

// text masks the values in an entry of a history. One too short to be looked for everywhere is masked where
// it is an argument's.
func (h hidden) text(s string) string {
	for _, kv := range h.args {
		k, _, _ := strings.Cut(kv, "=")
		s = strings.ReplaceAll(s, " "+kv, " "+k+"="+mask)
	}
	for _, v := range h.values {
		if len(v) >= minSecret {
			s = strings.ReplaceAll(s, v, mask)
		}
	}
	return s
}
