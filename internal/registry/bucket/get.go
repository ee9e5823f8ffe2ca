package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"
)

const (
	removesAtOnce = 8
	drain         = 64 << 10 // bytes of an answer that are read to keep its connection
)

// An Object is the content of a blob. It implements [io.ReadSeekCloser]. What breaks while it is read is
// asked for again. Close it.
type Object struct {
	b    *Bucket
	ctx  context.Context // of the request that it is read for
	key  string
	size int64

	at   int64 // of the next Read
	body io.ReadCloser
	next int64 // position of body
	end  int64 // of body
}

// Get opens the object of key, which has size bytes, and asks for those from one position up to another, which
// are then read first. The Object may be used until ctx ends.
func (b *Bucket) Get(ctx context.Context, key string, size, from, to int64) (*Object, error) {
	o := &Object{b: b, ctx: ctx, key: key, size: size}
	if from < 0 || to > size || from >= to {
		return nil, fmt.Errorf("bytes %d to %d of %d", from, to, size)
	}
	if err := o.ask(from, to); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *Object) ask(from, to int64) error {
	out, err := o.b.client.GetObject(o.ctx, &s3.GetObjectInput{
		Bucket: &o.b.cfg.Bucket, Key: new(o.b.object(o.key)), Range: new(fmt.Sprintf("bytes=%d-%d", from, to-1)),
	})
	if err != nil {
		return o.b.wrap(o.ctx, err)
	}
	if out.ContentLength == nil || *out.ContentLength != to-from {
		return errors.Join(o.b.wrap(o.ctx, fmt.Errorf("object of %s: the storage does not have the bytes %d to %d", o.key, from, to)), out.Body.Close())
	}
	o.body, o.next, o.end = out.Body, from, to
	return nil
}

// Read implements [io.Reader].
func (o *Object) Read(p []byte) (int, error) {
	if o.at >= o.size {
		return 0, io.EOF
	}
	var failed error
	for range attempts {
		if o.body != nil && (o.next != o.at || o.next == o.end) {
			o.drop()
		}
		if o.body == nil {
			if err := o.ask(o.at, o.size); err != nil {
				return 0, err
			}
		}
		n, err := o.body.Read(p[:min(int64(len(p)), o.end-o.next)])
		o.at, o.next = o.at+int64(n), o.next+int64(n)
		if n > 0 || err == nil {
			return n, nil
		}
		failed = err
		o.drop()
	}
	if failed == io.EOF {
		failed = io.ErrUnexpectedEOF
	}
	return 0, o.b.wrap(o.ctx, failed)
}

// Seek implements [io.Seeker].
func (o *Object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.at
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, errors.New("seek to before the beginning")
	}
	o.at = offset
	return offset, nil
}

// drop ends what is being received. Its connection can be used again if only little is still to come.
func (o *Object) drop() {
	if o.end-o.next <= drain {
		_, _ = io.CopyN(io.Discard, o.body, o.end-o.next+1)
	}
	_ = o.body.Close()
	o.body = nil
}

// Close implements [io.Closer].
func (o *Object) Close() error {
	if o.body != nil {
		o.drop()
	}
	return nil
}

// Stat returns the size of the object of key.
func (b *Bucket) Stat(ctx context.Context, key string) (int64, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.cfg.Bucket, Key: new(b.object(key))})
	if err != nil {
		return 0, b.wrap(ctx, err)
	}
	if out.ContentLength == nil {
		return 0, b.wrap(ctx, fmt.Errorf("object of %s: its size is not known", key))
	}
	return *out.ContentLength, nil
}

// Remove deletes the objects of keys. That there are none is no error.
func (b *Bucket) Remove(ctx context.Context, keys ...string) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(removesAtOnce)
	for _, key := range keys {
		g.Go(func() error {
			_, err := b.client.DeleteObject(gctx, &s3.DeleteObjectInput{Bucket: &b.cfg.Bucket, Key: new(b.object(key))})
			if code(err) == "NoSuchKey" {
				return nil
			}
			return b.wrap(gctx, err)
		})
	}
	return g.Wait()
}

// A Listed is an object among those of blobs.
type Listed struct {
	Name     string // within the bucket
	Size     int64
	Modified time.Time
}

// List calls f with every object that is where blobs are, until f returns an error.
func (b *Bucket) List(ctx context.Context, f func(Listed) error) error {
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.cfg.Bucket, Prefix: new(b.path(blobsFolder + "/"))},
		func(o *s3.ListObjectsV2PaginatorOptions) { o.StopOnDuplicateToken = true })
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return b.wrap(ctx, err)
		}
		for _, o := range page.Contents {
			if o.Key == nil || o.Size == nil || o.LastModified == nil {
				continue
			}
			if err := f(Listed{Name: *o.Key, Size: *o.Size, Modified: *o.LastModified}); err != nil {
				return err
			}
		}
	}
	return nil
}
