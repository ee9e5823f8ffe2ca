package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// LimitLogs sets how long and in how many bytes logs are kept: the oldest go first. Zero means without a
// limit. It can be called at any time, and holds for what is there already.
func (b *Bus) LimitLogs(ctx context.Context, age time.Duration, size int64) error {
	s, err := b.js.Stream(ctx, StreamLogs)
	if err == nil {
		cfg := s.CachedInfo().Config
		cfg.MaxAge, cfg.MaxBytes = age, size
		if size == 0 {
			cfg.MaxBytes = -1
		}
		if cfg.Replicas > 1 {
			_, err = b.js.UpdateStream(ctx, cfg)
		} else {
			err = b.requestAsync(ctx, "UPDATE", cfg)
		}
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", StreamLogs, err)
	}
	return nil
}

// requestAsync creates or updates a stream whose messages are written in the background. The client library
// has no field for the persist mode, so the request is made by hand.
func (b *Bus) requestAsync(ctx context.Context, verb string, cfg jetstream.StreamConfig) error {
	raw, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	var body map[string]any
	if err := json.Unmarshal(raw, &body); err != nil {
		return err
	}
	body["persist_mode"] = "async"
	if raw, err = json.Marshal(body); err != nil {
		return err
	}
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM."+verb+"."+cfg.Name, raw)
	if err != nil {
		return err
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}
