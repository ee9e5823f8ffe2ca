package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/event"
)

// sealTargets makes version 2: the addresses of targets, which are often as good as passwords, were
// stored in clear once.
func sealTargets(ctx context.Context, u Upgrade, js jetstream.JetStream) error {
	kv, err := js.KeyValue(ctx, bucketTargets)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	targets := Bucket[event.Target]{kv: kv, name: bucketTargets}
	var clear []Entry[event.Target]
	err = targets.List(ctx, func(e Entry[event.Target]) bool {
		if len(e.Value.Address) == 0 {
			clear = append(clear, e)
		}
		return true
	})
	for _, e := range clear {
		if err != nil {
			break
		}
		t := e.Value
		address, perr := url.Parse(t.URL)
		if perr != nil {
			return fmt.Errorf("target %s: its address is no URL", t.Name) // and not to be shown
		}
		if t.Address, err = u.Seal(t.URL); err == nil {
			t.URL = (&url.URL{Scheme: address.Scheme, Host: address.Host}).String()
			_, err = targets.Update(ctx, e.Key, t, e.Revision)
		}
	}
	return err
}
