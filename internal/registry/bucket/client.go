package bucket

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

const (
	attempts       = 3
	defaultBackoff = 2 * time.Second
	defaultStall   = 30 * time.Second
	dialTimeout    = 5 * time.Second
	idleConns      = 32
	askAgain       = 5 * time.Minute // for credentials, which may be replaced
	maxCause       = 300             // bytes of what the storage says about an error
)

// Conditions that callers branch on.
var (
	// ErrUnavailable means that the storage did not do what it was asked for.
	ErrUnavailable = errors.New("the storage of blobs is not available")
	// ErrRefused means, beside ErrUnavailable, that it has answered: the bucket, the region, the credentials
	// or their permissions are wrong.
	ErrRefused = errors.New("the request was refused")
)

// Credentials are those of the storage.
type Credentials struct {
	AccessKey, SecretKey string
	SessionToken         string // empty unless they are temporary
}

// String hides the credentials.
func (Credentials) String() string { return "***" }

// GoString hides the credentials.
func (Credentials) GoString() string { return "***" }

// ReadCredentials reads a file of lines NAME = VALUE with the names aws_access_key_id,
// aws_secret_access_key and aws_session_token, as Amazon's tools write them. Of several sections it
// takes the one named default.
func ReadCredentials(path string) (Credentials, error) {
	f, err := os.Open(path)
	if err != nil {
		return Credentials{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	var c Credentials
	section := "default"
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[] ")
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || section != "default" {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "aws_access_key_id":
			c.AccessKey = value
		case "aws_secret_access_key":
			c.SecretKey = value
		case "aws_session_token":
			c.SessionToken = value
		}
	}
	if err := lines.Err(); err != nil {
		return Credentials{}, fmt.Errorf("%s: %w", path, err)
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return Credentials{}, fmt.Errorf("%s: want a line aws_access_key_id = KEY and a line aws_secret_access_key = SECRET", path)
	}
	return c, nil
}

func newClient(cfg Config) *s3.Client {
	provider := aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		if cfg.Credentials == nil {
			return aws.Credentials{}, errors.New("there are no credentials")
		}
		c, err := cfg.Credentials(ctx)
		return aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: c.SecretKey, SessionToken: c.SessionToken,
			CanExpire: true, Expires: time.Now().Add(askAgain)}, err
	})
	opt := s3.Options{
		Region:       cfg.region(),
		UsePathStyle: cfg.PathStyle,
		Credentials:  aws.NewCredentialsCache(provider),
		HTTPClient:   newHTTPClient(cfg.Stall),
		// Without these the client adds what servers other than Amazon's may not know. The content is
		// verified without: its digest is part of the signature.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = attempts, cfg.Backoff, ratelimit.None
		}),
	}
	if cfg.Endpoint != "" {
		opt.BaseEndpoint = &cfg.Endpoint
	}
	return s3.New(opt)
}

func newHTTPClient(stall time.Duration) *http.Client {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &patientConn{Conn: c, stall: stall}, nil
			},
			TLSHandshakeTimeout:    dialTimeout,
			MaxIdleConnsPerHost:    idleConns,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
			WriteBufferSize:        64 << 10,
			ReadBufferSize:         64 << 10,
		},
		// What is signed for one host is not for another.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func closeIdle(c *s3.Client) {
	if h, ok := c.Options().HTTPClient.(*http.Client); ok {
		h.CloseIdleConnections()
	}
}

// A patientConn may take as long as it likes, if only it does not stall. Whoever sends waits for no answer
// yet, so sending is progress of both directions.
type patientConn struct {
	net.Conn
	stall time.Duration
}

func (c *patientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *patientConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// code is the storage's word for an error; empty if it said none.
func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// wrap makes an error of this package of one of the client's.
func (b *Bucket) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	status := 0
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		status = e.HTTPStatusCode()
	}
	cause := explain(err, status)
	switch c := code(err); {
	case c == "NoSuchKey" || status == http.StatusNotFound && (c == "NotFound" || c == ""):
		return fmt.Errorf("%s: %w", b, fs.ErrNotExist)
	case status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout:
		return fmt.Errorf("%w: %s: %w: %s", ErrUnavailable, b, ErrRefused, cause)
	}
	return fmt.Errorf("%w: %s: %s", ErrUnavailable, b, cause)
}

// explain says why a request failed, in short and without what identifies it.
func explain(err error, status int) string {
	text := ""
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		text = strings.TrimSuffix(e.ErrorCode()+": "+e.ErrorMessage(), ": ")
	} else if e, ok := errors.AsType[*url.Error](err); ok {
		text = e.Err.Error()
	} else if status == 0 {
		text = err.Error()
	}
	text = strings.ToValidUTF8(text[:min(len(text), maxCause)], "")
	if status == 0 {
		return text
	}
	return strings.TrimSuffix(fmt.Sprintf("status %d: %s", status, text), ": ")
}
