// Package bucket keeps blobs as objects below a prefix of an S3-compatible bucket.
//
// Durability: what Put and Claim have returned nil for, the storage has acknowledged. It verifies the
// content by the digest that every request is signed with.
//
// Failure: every operation is bounded. A request is tried three times, connecting to the storage takes
// seconds at most, and a connection that makes no progress is given up; how long an operation may take
// beyond that follows from how much it transfers. What the storage does not do is an error that wraps
// [ErrUnavailable], names the bucket and the endpoint, and holds no credentials. That there is no such
// object is [fs.ErrNotExist]. Nothing has to be done when the storage comes back.
//
// Concurrency: a Bucket may be used by any number of goroutines. An Object belongs to one.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const (
	maxPrefix     = 512         // bytes of a prefix
	defaultRegion = "us-east-1" // what servers other than Amazon's take for theirs
	blobsFolder   = "blobs"
	maxMarker     = 4 << 10 // bytes of a marker that are read
)

// Marker is the object by which a prefix is claimed.
const Marker = "kiln-registry"

// A Config says where a bucket is and how it is reached.
type Config struct {
	Bucket string
	Prefix string // without slashes at its ends; may be empty
	// Endpoint is the address of the storage. Empty means Amazon's of the region.
	Endpoint string
	Region   string // empty means us-east-1
	// PathStyle names the bucket in the path instead of the host name.
	PathStyle bool
	// Credentials are asked for when they are first needed, and again every few minutes.
	Credentials func(context.Context) (Credentials, error)
	// Stall is how long a connection may make no progress. 0 means 30 seconds.
	Stall time.Duration
	// Part is up to how many bytes are sent in one request. 0 means 16 MiB; Amazon takes no less than 5 MiB.
	Part int64
	// Backoff is the longest pause before a request is tried again. 0 means 2 seconds.
	Backoff time.Duration
}

// Parse reads a location: s3://BUCKET[/PREFIX][?endpoint=URL][&region=REGION][&path-style=true|false]. With an
// endpoint the bucket is named in the path unless that is said otherwise.
func Parse(location string) (Config, error) {
	u, err := url.Parse(location)
	if err != nil {
		return Config{}, errors.New("it is no URL") // the error of url has all of the text, which may hold credentials
	}
	if u.User != nil {
		return Config{}, errors.New("credentials do not belong here: they are read from the environment or a file")
	}
	if u.Scheme != "s3" || !validBucket(u.Host) || u.Fragment != "" {
		return Config{}, errors.New("want s3://BUCKET[/PREFIX][?endpoint=URL][&region=REGION][&path-style=true|false]")
	}
	c := Config{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	if !validPrefix(c.Prefix) {
		return Config{}, fmt.Errorf("prefix: want at most %d letters, digits and -_./ with no empty part and none of dots alone", maxPrefix)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("the parameters after ? are malformed")
	}
	for name, values := range query {
		if len(values) != 1 {
			return Config{}, fmt.Errorf("%s is given more than once", name)
		}
	}
	c.PathStyle = query.Get("endpoint") != ""
	for name, values := range query {
		if err := c.set(name, values[0]); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

func (c *Config) set(name, value string) error {
	switch name {
	case "endpoint":
		e, err := url.Parse(value)
		if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" || e.User != nil || strings.Trim(e.Path, "/") != "" || e.RawQuery != "" || e.Fragment != "" {
			return errors.New("endpoint: want http://HOST:PORT or https://HOST:PORT")
		}
		c.Endpoint = e.Scheme + "://" + e.Host
	case "region":
		if len(value) > 64 || strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return errors.New("region: want a name such as eu-central-1")
		}
		c.Region = value
	case "path-style":
		is, err := strconv.ParseBool(value)
		if err != nil {
			return errors.New("path-style: want true or false")
		}
		c.PathStyle = is
	default:
		return errors.New("its parameters are endpoint, region and path-style; credentials are read from the environment or a file")
	}
	return nil
}

func validBucket(name string) bool {
	return len(name) >= 3 && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

func validPrefix(p string) bool {
	if p == "" {
		return true
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return len(p) <= maxPrefix && strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == ""
}

// Location returns s3://BUCKET/PREFIX: which objects are meant, not how they are reached.
func (c Config) Location() string {
	if c.Prefix == "" {
		return "s3://" + c.Bucket
	}
	return "s3://" + c.Bucket + "/" + c.Prefix
}

// String returns the location and where it is.
func (c Config) String() string {
	if c.Endpoint == "" {
		return c.Location() + " at Amazon S3, region " + c.region()
	}
	return c.Location() + " at " + c.Endpoint
}

func (c Config) region() string {
	if c.Region == "" {
		return defaultRegion
	}
	return c.Region
}

// A Bucket reads and writes the objects of one prefix.
type Bucket struct {
	cfg    Config
	client *s3.Client
}

// Open returns the bucket of a configuration. It does not ask the storage for anything.
func Open(cfg Config) *Bucket {
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	if cfg.Part <= 0 {
		cfg.Part = defaultPart
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = defaultBackoff
	}
	return &Bucket{cfg: cfg, client: newClient(cfg)}
}

// Location is that of the configuration.
func (b *Bucket) Location() string { return b.cfg.Location() }

// String names the bucket and where it is.
func (b *Bucket) String() string { return b.cfg.String() }

// Close gives up the connections that nothing uses.
func (b *Bucket) Close() { closeIdle(b.client) }

func (b *Bucket) path(name string) string {
	if b.cfg.Prefix == "" {
		return name
	}
	return b.cfg.Prefix + "/" + name
}

// object is the name of the object that holds a blob.
func (b *Bucket) object(key string) string { return b.path(blobsFolder + "/" + key[:2] + "/" + key) }

// Owner returns who has claimed the prefix; empty if nobody has.
func (b *Bucket) Owner(ctx context.Context) (string, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: new(b.path(Marker))})
	if err = b.wrap(ctx, err); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(io.LimitReader(out.Body, maxMarker))
	if err := errors.Join(err, out.Body.Close()); err != nil {
		return "", b.wrap(ctx, err)
	}
	owner, _, _ := strings.Cut(string(body), "\n")
	return strings.TrimSpace(owner), nil
}

// Claim marks the prefix as owner's, unless it is somebody's already, and returns whose it is then.
func (b *Bucket) Claim(ctx context.Context, owner string) (string, error) {
	put := &s3.PutObjectInput{Bucket: &b.cfg.Bucket, Key: new(b.path(Marker)), IfNoneMatch: new("*"),
		Body: strings.NewReader(owner + "\nThe registry with this ID keeps its blobs here. Two registries must not share a prefix.\n")}
	_, err := b.client.PutObject(ctx, put)
	if code(err) == "NotImplemented" { // a storage without conditions; who came first is seen below
		put.IfNoneMatch = nil
		_, err = b.client.PutObject(ctx, put)
	}
	if err != nil && code(err) != "PreconditionFailed" && code(err) != "ConditionalRequestConflict" {
		return "", b.wrap(ctx, err)
	}
	return b.Owner(ctx)
}
