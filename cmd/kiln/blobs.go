package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/registry/bucket"
)

const blobsPatience = 5 * time.Second // that kiln doctor waits for the storage of blobs

// bucket returns where --blobs says that large blobs are; nil if they are files in the data directory.
func (cfg *serveConfig) bucket() (*bucket.Config, error) {
	if cfg.blobs == "" {
		if cfg.blobsCredentials != "" {
			return nil, errors.New("--blobs-credentials: needs --blobs")
		}
		return nil, nil
	}
	b, err := bucket.Parse(cfg.blobs)
	if err != nil {
		return nil, fmt.Errorf("--blobs: %w", err) // what is wrong may be a secret, so it is not repeated
	}
	b.Credentials = cfg.bucketCredentials
	if _, err := b.Credentials(context.Background()); err != nil {
		return nil, fmt.Errorf("--blobs: credentials: %w", err)
	}
	return &b, nil
}

// bucketCredentials reads the credentials, each time anew: a file may have been replaced.
func (cfg *serveConfig) bucketCredentials(context.Context) (bucket.Credentials, error) {
	if cfg.blobsCredentials != "" {
		return bucket.ReadCredentials(cfg.blobsCredentials)
	}
	c := bucket.Credentials{
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN"),
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return c, errors.New("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file with --blobs-credentials")
	}
	return c, nil
}

// blobChecks says whether the storage of blobs is there.
func (n *node) blobChecks(ctx context.Context) []apiclient.Check {
	ctx, cancel := context.WithTimeout(ctx, blobsPatience)
	defer cancel()
	where, err := n.registry.CheckBlobs(ctx)
	switch {
	case where == "":
		return nil
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("%w: %s: no answer within %s", bucket.ErrUnavailable, where, blobsPatience)
		fallthrough
	case err != nil:
		return []apiclient.Check{{Name: "storage of blobs", Detail: err.Error(), Remedy: "see that it runs and that its credentials are valid; until then no layers are pushed or pulled"}}
	}
	return []apiclient.Check{{Name: "storage of blobs", OK: true, Detail: where}}
}
