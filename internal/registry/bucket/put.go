package bucket

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

const (
	defaultPart = 16 << 20 // bytes up to which an object is sent in one request, and of the parts of larger ones
	maxParts    = 10_000   // of one object, as the storages have it
	partsAtOnce = 4
	abortTime   = 10 * time.Second // that giving up an upload may take

	putSlowest  = 64 << 10        // bytes per second: the rate below which an object is given up
	putPatience = 2 * time.Minute // that a request may take beside its transfer
)

// Put stores size bytes of r as the object of key. It reads from several places of r at once.
func (b *Bucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, putPatience+time.Duration(size/putSlowest)*time.Second, b.tooSlow())
	defer cancel()
	if size > b.cfg.Part {
		return b.putParts(ctx, key, r, size)
	}
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.cfg.Bucket, Key: new(b.object(key)), ContentLength: &size, Body: io.NewSectionReader(r, 0, size),
	})
	return b.wrap(ctx, err)
}

// part returns the size of the parts that an object is cut into.
func (b *Bucket) part(size int64) int64 {
	const unit = 1 << 20
	least := (size + maxParts - 1) / maxParts
	return max(b.cfg.Part, (least+unit-1)/unit*unit)
}

func (b *Bucket) putParts(ctx context.Context, key string, r io.ReaderAt, size int64) (err error) {
	name := b.object(key)
	begun, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: &name})
	if err != nil {
		return b.wrap(ctx, err)
	}
	defer func() {
		if err != nil {
			b.abort(ctx, name, begun.UploadId)
		}
	}()
	length := b.part(size)
	parts := make([]types.CompletedPart, (size+length-1)/length)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	for i := range parts {
		g.Go(func() error {
			n := min(length, size-int64(i)*length)
			number := int32(i + 1)
			out, err := b.client.UploadPart(gctx, &s3.UploadPartInput{
				Bucket: &b.cfg.Bucket, Key: &name, UploadId: begun.UploadId, PartNumber: &number,
				ContentLength: &n, Body: io.NewSectionReader(r, int64(i)*length, n),
			})
			if err != nil {
				return b.wrap(gctx, err)
			}
			parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: &number}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	_, err = b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.cfg.Bucket, Key: &name, UploadId: begun.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if code(err) == "NoSuchUpload" { // it may have been completed before, by a request whose answer was lost
		if n, err := b.Stat(ctx, key); err == nil && n == size {
			return nil
		}
	}
	return b.wrap(ctx, err)
}

// abort gives the parts of an upload back. What cannot be done now, AbortStale does later.
func (b *Bucket) abort(ctx context.Context, name string, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, _ = b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: &name, UploadId: id})
}

// AbortStale gives back what unfinished uploads hold that began before a time.
func (b *Bucket) AbortStale(ctx context.Context, before time.Time) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.cfg.Bucket, Prefix: new(b.path(blobsFolder + "/"))}
	for {
		out, err := b.client.ListMultipartUploads(ctx, in)
		if c := code(err); c == "NoSuchUpload" || c == "NotImplemented" { // how some say that there is none
			return nil
		}
		if err != nil {
			return b.wrap(ctx, err)
		}
		for _, u := range out.Uploads {
			if u.Key == nil || u.Initiated == nil || !u.Initiated.Before(before) {
				continue
			}
			_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: u.Key, UploadId: u.UploadId})
			if err != nil && code(err) != "NoSuchUpload" {
				return b.wrap(ctx, err)
			}
		}
		if out.IsTruncated == nil || !*out.IsTruncated || out.NextKeyMarker == nil {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}

// tooSlow is why an operation was given up that took too long.
func (b *Bucket) tooSlow() error {
	return fmt.Errorf("%w: %s: it is too slow", ErrUnavailable, b)
}
