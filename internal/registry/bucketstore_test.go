package registry_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registry/bucket"
	"kiln/internal/registrytest"
)

// onBoth runs f on a registry with its blobs in files, and on one that has them in a bucket.
func onBoth(t *testing.T, f func(*testing.T, *registrytest.Registry)) {
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		f(t, registrytest.Start(t))
	})
	t.Run("bucket", func(t *testing.T) {
		t.Parallel()
		r, b := startOnBucket(t)
		f(t, r)
		if n := files(t, filepath.Join(r.Dir, "blobs")); n != 0 || len(b.Names(t)) == 0 {
			t.Errorf("%d blobs in files, %q in the bucket", n, b.Names(t))
		}
	})
}

func startOnBucket(t *testing.T) (*registrytest.Registry, *registrytest.Bucket) {
	t.Helper()
	b := registrytest.StartBucket(t)
	return registrytest.StartWith(t, registry.Options{Reserve: -1, Bucket: b.Config(t)}), b
}

// varied returns n bytes that are nowhere like what is elsewhere.
func varied(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d.", i)
	}
	return b.Bytes()[:n]
}

func TestLargeBlobsAreSentReadMountedAndDeleted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *registrytest.Registry) {
		body := varied(3 << 20) // more than one part
		d := digest.FromBytes(body).String()
		at := beginUpload(t, r, "a")
		res, _ := want(t, r, http.StatusAccepted, "PATCH", at, body[:70_000])
		want(t, r, http.StatusBadRequest, "PUT", res.Header.Get("Location")+"?digest="+digest.FromString("else").String(), body[70_000:])
		want(t, r, http.StatusNotFound, "HEAD", "/v2/a/blobs/"+d, nil)
		res, _ = want(t, r, http.StatusAccepted, "PATCH", beginUpload(t, r, "a"), body[:70_000])
		want(t, r, http.StatusCreated, "PUT", res.Header.Get("Location")+"?digest="+d, body[70_000:])
		putBlob(t, r, "a", body) // is there already
		if _, got := want(t, r, http.StatusOK, "GET", "/v2/a/blobs/"+d, nil); !bytes.Equal(got, body) {
			t.Errorf("%d bytes came back", len(got))
		}
		want(t, r, http.StatusCreated, "POST", "/v2/b/blobs/uploads/?from=a&mount="+d, nil)
		for ranges, part := range map[string][]byte{
			"bytes=100-199": body[100:200], "bytes=3145000-": body[3145000:], "bytes=-5": body[len(body)-5:],
			"bytes=5-99999999999": body[5:], "bytes=5-9223372036854775807": body[5:],
		} {
			if _, got := want(t, r, http.StatusPartialContent, "GET", "/v2/b/blobs/"+d, nil, "Range", ranges); !bytes.Equal(got, part) {
				t.Errorf("%s: %d bytes came back, want %d", ranges, len(got), len(part))
			}
		}
		if _, got := want(t, r, http.StatusPartialContent, "GET", "/v2/b/blobs/"+d, nil, "Range", "bytes=10-19,1000000-1000009"); !bytes.Contains(got, body[10:20]) || !bytes.Contains(got, body[1000000:1000010]) {
			t.Errorf("two ranges: %q", got)
		}
		want(t, r, http.StatusRequestedRangeNotSatisfiable, "GET", "/v2/b/blobs/"+d, nil, "Range", "bytes=99999999999-")
		want(t, r, http.StatusAccepted, "DELETE", "/v2/a/blobs/"+d, nil)
		want(t, r, http.StatusNotFound, "GET", "/v2/a/blobs/"+d, nil)
		sound(t, r.Store)
	})
}

func TestCollectionFreesLargeBlobs(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *registrytest.Registry) {
		tagImage(t, r, "a", "kept", strings.Repeat("k", 100<<10))
		gone := tagImage(t, r, "a", "gone", strings.Repeat("g", 100<<10))
		want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+gone, nil)
		age(t, r, 25*time.Hour)
		if got, err := r.Store.Collect(t.Context(), registry.Collection{}); err != nil || got.Blobs != 1 || got.Freed != 100<<10 {
			t.Errorf("Collect = %+v, %v", got, err)
		}
		fetch(t, r, "a", "kept")
		sound(t, r.Store)
		if tagImage(t, r, "a", "gone", strings.Repeat("g", 100<<10)) != gone {
			t.Error("another image")
		}
		fetch(t, r, "a", "gone")
	})
}

func TestCheckFindsDamageInBucket(t *testing.T) {
	t.Parallel()
	r, b := startOnBucket(t)
	for _, layer := range []string{"m", "s", "d"} {
		tagImage(t, r, "a", layer, strings.Repeat(layer, 100<<10))
	}
	keys := map[string]string{}
	for _, name := range b.Names(t) {
		key := name[strings.LastIndex(name, "/")+1:]
		rc, err := bucket.Open(*b.Config(t)).Get(t.Context(), key, 100<<10, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(rc, first); err != nil {
			t.Fatal(err)
		}
		keys[string(first)] = key
	}
	direct := bucket.Open(*b.Config(t))
	const orphan = "0123456789abcdef0123456789abcdef"
	wrong := strings.NewReader(strings.Repeat("x", 100<<10))
	if err := errors.Join(direct.Remove(t.Context(), keys["m"]), direct.Put(t.Context(), keys["s"], wrong, 10),
		direct.Put(t.Context(), keys["d"], wrong, 100<<10), direct.Put(t.Context(), orphan, wrong, 10)); err != nil {
		t.Fatal(err)
	}
	found, err := r.Store.Check(t.Context(), false)
	if err != nil || len(found.Missing) != 1 || len(found.Damaged) != 2 || len(found.Orphaned) != 0 {
		t.Errorf("Check = %+v, %v", found, err)
	}
	if found, err = r.Store.Check(t.Context(), true); err != nil || len(found.Missing) != 1 || len(found.Damaged) != 1 {
		t.Errorf("quick Check = %+v, %v", found, err)
	}
	b.Break(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if found, err = r.Store.Check(t.Context(), false); !errors.Is(err, bucket.ErrUnavailable) || len(found.Missing)+len(found.Damaged) != 0 {
		t.Errorf("Check without the bucket = %+v, %v", found, err)
	}
}

func TestSmallImagesDoNotNeedTheBucket(t *testing.T) {
	t.Parallel()
	r, b := startOnBucket(t)
	before := b.Requests.Load()
	tinyPush(t, r, "a", "1", []byte("layer"))
	fetch(t, r, "a", "1")
	if n := b.Requests.Load() - before; n != 0 {
		t.Errorf("%d requests to the bucket", n)
	}
}

func TestRegistryOutlivesItsBucket(t *testing.T) {
	t.Parallel()
	r, b := startOnBucket(t)
	large := bytes.Repeat([]byte("large"), 20<<10)
	d := tagImage(t, r, "a", "1", string(large))
	layer := "/v2/a/blobs/" + digest.FromBytes(large).String()
	b.Break(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, body := want(t, r, http.StatusServiceUnavailable, "GET", layer, nil)
	if code(t, body) != "UNAVAILABLE" || !bytes.Contains(body, []byte(b.Config(t).String())) || bytes.Contains(body, []byte(registrytest.BucketKey)) {
		t.Errorf("GET: %s", body)
	}
	more := bytes.Repeat([]byte("more."), 20<<10)
	put := func(status int) {
		t.Helper()
		want(t, r, status, "PUT", beginUpload(t, r, "a")+"?digest="+digest.FromBytes(more).String(), more)
	}
	put(http.StatusServiceUnavailable)
	want(t, r, http.StatusNotFound, "HEAD", "/v2/a/blobs/"+digest.FromBytes(more).String(), nil)
	want(t, r, http.StatusOK, "HEAD", layer, nil)
	want(t, r, http.StatusOK, "GET", "/v2/a/manifests/1", nil)
	want(t, r, http.StatusOK, "GET", "/v2/a/tags/list", nil)
	want(t, r, http.StatusCreated, "POST", "/v2/b/blobs/uploads/?from=a&mount="+digest.FromBytes(large).String(), nil)
	tinyPush(t, r, "a", "small", []byte("small layer"))
	if where, err := r.Store.CheckBlobs(t.Context()); where != b.Config(t).String() || !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("CheckBlobs = %q, %v", where, err)
	}
	if _, err := r.Store.Collect(t.Context(), registry.Collection{}); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("Collect: %v", err) // it has to delete what was perhaps put
	}

	b.Break(nil)
	put(http.StatusCreated)
	if fetch(t, r, "a", "1") != d {
		t.Error("another image")
	}
	if _, err := r.Store.CheckBlobs(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := r.Store.Collect(t.Context(), registry.Collection{}); err != nil {
		t.Error(err)
	}
	sound(t, r.Store)
}

// TestUnacknowledgedObjectIsCollected has the bucket take an object and hang up instead of saying so.
func TestUnacknowledgedObjectIsCollected(t *testing.T) {
	t.Parallel()
	r, b := startOnBucket(t)
	b.Break(func(w http.ResponseWriter, req *http.Request) {
		registrytest.Pass(w, req)
		if req.Method == http.MethodPut {
			panic(http.ErrAbortHandler)
		}
	})
	body := bytes.Repeat([]byte("large"), 20<<10)
	want(t, r, http.StatusServiceUnavailable, "PUT", beginUpload(t, r, "a")+"?digest="+digest.FromBytes(body).String(), body)
	if n := len(b.Names(t)); n != 1 {
		t.Fatalf("%d objects", n)
	}
	want(t, r, http.StatusNotFound, "HEAD", "/v2/a/blobs/"+digest.FromBytes(body).String(), nil)
	sound(t, r.Store)
	if _, err := r.Store.Collect(t.Context(), registry.Collection{}); err != nil {
		t.Fatal(err)
	}
	if names := b.Names(t); len(names) != 0 {
		t.Errorf("%q are left", names)
	}
}

func TestBlobsStayWhereTheyAre(t *testing.T) {
	t.Parallel()
	server, empty := registrytest.StartBucket(t), registrytest.StartBucket(t)
	inBucket, inFiles := t.TempDir(), t.TempDir()
	open := func(dir string, b *registrytest.Bucket, location string) error {
		opt := registry.Options{Reserve: -1}
		if b != nil {
			opt.Bucket = b.Config(t)
		}
		if location != "" {
			opt.Bucket.Prefix = location
		}
		s, err := registry.Open(dir, opt)
		if err != nil {
			return err
		}
		_, _, err = s.PutBlob(t.Context(), "a", bytes.NewReader(make([]byte, 100<<10)))
		return errors.Join(err, s.Close())
	}
	for _, step := range []struct {
		what     string
		dir      string
		bucket   *registrytest.Bucket
		prefix   string
		want     string
		isItself bool
	}{
		{"a new one in a bucket", inBucket, server, "", "", false},
		{"again", inBucket, server, "", "", false},
		{"without its bucket", inBucket, nil, "", "its blobs are in s3://blobs/team", true},
		{"with a bucket of nobody", inBucket, empty, "", "has no object kiln-registry", true},
		{"with a prefix of nobody", inBucket, server, "else", "its blobs were in s3://blobs/team", true},
		{"a new one in files", inFiles, nil, "", "", false},
		{"files in a bucket", inFiles, empty, "", "its blobs are files", true},
		{"a second one in the first one's bucket", t.TempDir(), server, "", "is the registry's with the ID", true},
		{"a second one beside it", t.TempDir(), server, "else", "", false},
	} {
		err := open(step.dir, step.bucket, step.prefix)
		if step.want == "" && err != nil || step.want != "" && (!errors.Is(err, registry.ErrBlobsElsewhere) || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("%s: %v, want %q", step.what, err, step.want)
		}
	}
}

func TestBucketMayBeAwayAtTheStart(t *testing.T) {
	t.Parallel()
	b, dir := registrytest.StartBucket(t), t.TempDir()
	hangUp := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	opt := registry.Options{Reserve: -1, Bucket: b.Config(t)}
	b.Break(hangUp)
	if _, err := registry.Open(dir, opt); !errors.Is(err, bucket.ErrUnavailable) {
		t.Fatalf("the first start: %v", err)
	}
	b.Break(nil)
	s, err := registry.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 100<<10)
	d, _, err := s.PutBlob(t.Context(), "a", bytes.NewReader(body))
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	b.Break(hangUp)
	if s, err = registry.Open(dir, opt); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := s.BlobReader(t.Context(), "a", d); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("BlobReader: %v", err)
	}
	b.Break(nil)
	rc, size, err := s.BlobReader(t.Context(), "a", d)
	if err != nil || size != int64(len(body)) {
		t.Fatal(size, err)
	}
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	b.Break(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if _, err := registry.Open(t.TempDir(), opt); !errors.Is(err, bucket.ErrRefused) {
		t.Errorf("with wrong credentials: %v", err)
	}
}

// TestBucketIsLeftToItsOwner gives a bucket to another registry while it cannot be asked.
func TestBucketIsLeftToItsOwner(t *testing.T) {
	t.Parallel()
	b, dir := registrytest.StartBucket(t), t.TempDir()
	opt := registry.Options{Reserve: -1, Bucket: b.Config(t)}
	s, err := registry.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := s.PutBlob(t.Context(), "a", bytes.NewReader(make([]byte, 100<<10)))
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`UPDATE meta SET value = 'another' WHERE key = 'uuid'`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Open(dir, opt); !errors.Is(err, registry.ErrBlobsElsewhere) {
		t.Errorf("Open: %v", err)
	}
	b.Break(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if s, err = registry.Open(dir, opt); err != nil {
		t.Fatal(err)
	}
	b.Break(nil)
	_, _, put := s.PutBlob(t.Context(), "a", bytes.NewReader(make([]byte, 200<<10)))
	_, _, get := s.BlobReader(t.Context(), "a", d)
	_, collect := s.Collect(t.Context(), registry.Collection{})
	for what, err := range map[string]error{"PutBlob": put, "BlobReader": get, "Collect": collect, "Close": nil} {
		if what != "Close" && !errors.Is(err, registry.ErrBlobsElsewhere) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := len(b.Names(t)); n != 1 {
		t.Errorf("%d objects, want the one of the owner", n)
	}
}
