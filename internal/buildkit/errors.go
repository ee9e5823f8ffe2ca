package buildkit

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"kiln/internal/solve"
)

// maxMessage bounds the message of a step's error, in bytes.
const maxMessage = 2000

// diskFullError says that a build found no space on the daemon's disk, even after freeing some.
type diskFullError struct {
	address string
	err     error
}

func (e *diskFullError) Error() string {
	return fmt.Sprintf("the disk of the build daemon %s is full, and removing its unused cache did not help: "+
		"free space under the daemon's root or lower its cache limits: %v", e.address, e.err)
}

func (e *diskFullError) Unwrap() error { return e.err }

// isDiskFull reports whether the daemon itself, not a process in a build, ran out of disk.
func isDiskFull(err error) bool {
	// The daemon sends the system's words, with a code that also means other exhaustions.
	return err != nil && strings.Contains(err.Error(), "no space left on device") && !isExit(err)
}

func isExit(err error) bool {
	var exit *gatewaypb.ExitError
	return errors.As(err, &exit)
}

// freeDisk removes what is not in use from the daemon. Concurrent callers share one removal.
func (c *Client) freeDisk(ctx context.Context) error {
	before := c.freed.Load()
	c.freeing.Lock()
	defer c.freeing.Unlock()
	if c.freed.Load() != before {
		return nil // while waiting, somebody else did it
	}
	// Removing needs some space itself, and loses track of what it could not remove for want of it.
	// What has just failed gives up its own, but not at once.
	for wait := freeWait; ; wait *= 2 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		_, err := c.pruneMatching(ctx, "")
		if err == nil {
			c.freed.Add(1)
			return nil
		}
		if !isDiskFull(err) || wait >= maxFreeWait {
			return err
		}
	}
}

// The times before tries to free the disk.
const (
	freeWait    = 500 * time.Millisecond
	maxFreeWait = 2 * time.Second
)

// engineError returns err as the daemon's: marked unavailable when the daemon is gone.
func (c *Client) engineError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return causeOf(ctx, err)
	}
	switch code := grpcerrors.Code(err); {
	case errors.Is(err, solve.ErrUnavailable):
		return err
	case code == codes.Unavailable, code == codes.Canceled, errors.Is(err, errEnded):
		return c.unavailable(err)
	}
	return fmt.Errorf("build daemon %s: %w", c.cfg.Address, err)
}

func (c *Client) unavailable(err error) error {
	if errors.Is(err, solve.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("build daemon %s: %w: %w", c.cfg.Address, solve.ErrUnavailable, err)
}

// buildError decides whose failure err is. lost is the state of the connection that b used.
func (s *runSession) buildError(ctx context.Context, b solve.Build, err error, vertices *vertexNames, lost <-chan struct{}) error {
	if ctx.Err() != nil {
		return causeOf(ctx, err)
	}
	select {
	case <-lost:
		return s.client.unavailable(err)
	default:
	}
	message := s.redact.String(err.Error())
	switch {
	case isDiskFull(err):
		return errors.New(message)
	case strings.Contains(message, "failed to push "+pushedTo(s.cfg, b.Staging)):
		return fmt.Errorf("step %s: %s", b.Step, oneLine(message))
	case !isExit(err) && len(errdefs.Sources(err)) == 0 && !fromVertex(err):
		if code := grpcerrors.Code(err); code == codes.Unavailable || code == codes.Canceled {
			return s.client.unavailable(errors.New(message))
		}
	}
	return s.stepFailure(b, err, vertices)
}

func fromVertex(err error) bool {
	var v *errdefs.VertexError
	return errors.As(err, &v)
}

// stepFailure translates what the daemon says about a build that failed by itself.
func (s *runSession) stepFailure(b solve.Build, err error, vertices *vertexNames) *solve.StepError {
	out := &solve.StepError{ExitCode: -1, Source: sourceOf(err)}
	reason := tidy(s.redact.String(oneLine(err.Error())))
	if denials := policysession.DenyMessages(err); len(denials) > 0 {
		reason = denials[0].GetMessage()
	}
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		out.ExitCode = int(exit.ExitCode)
		reason = fmt.Sprintf("exit code %d", exit.ExitCode)
	}
	out.Message = clip(reason, maxMessage)
	var v *errdefs.VertexError
	if errors.As(err, &v) {
		name, foreign := vertices.name(v.Digest)
		if foreign && out.ExitCode > 0 {
			out.Message = notExecutable(platformOf(name, b.Platforms))
		}
		if command := commandOf(name); command != "" {
			out.Message = s.redact.String(command) + ": " + out.Message
		}
	}
	return out
}

// sourceOf returns "file:line" of the innermost position in err, or "".
func sourceOf(err error) string {
	sources := errdefs.Sources(err)
	if len(sources) == 0 {
		return ""
	}
	src := sources[0]
	if src.Info == nil {
		return ""
	}
	if len(src.Ranges) == 0 || src.Ranges[0].Start == nil {
		return src.Info.Filename
	}
	return fmt.Sprintf("%s:%d", src.Info.Filename, src.Ranges[0].Start.Line)
}

// notExecutable says that the programs of a platform cannot be executed, and what can be done about it.
func notExecutable(platform string) string {
	return "this worker cannot execute programs of " + platform + ": the kernel has no emulator for them. Register one " +
		"on the worker's host (apt-get install qemu-user-static binfmt-support, then start the worker again), " +
		"or compile for it in a stage that is FROM --platform=$BUILDPLATFORM"
}

// stagePlatform is the platform in the name of a vertex of a build for several.
var stagePlatform = regexp.MustCompile(`^\[([a-z]+/[a-z0-9/.]+)[ \]-]`)

// platformOf returns the platform that a vertex was executed for.
func platformOf(name string, platforms []string) string {
	if m := stagePlatform.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	if len(platforms) == 1 {
		return platforms[0]
	}
	return "another platform than its own"
}

// stageCommand is what the frontend calls the vertex of an instruction: "[build 2/3] RUN make".
var stageCommand = regexp.MustCompile(`^\[[^\]]*\d+/\d+\] (.*)$`)

// commandOf returns the instruction that a vertex's name tells, on one line, or "".
func commandOf(name string) string {
	m := stageCommand.FindStringSubmatch(oneLine(name))
	if m == nil {
		return ""
	}
	return clip(m[1], 200)
}

// Words with which BuildKit wraps an error without telling the user anything.
var (
	wrappings = regexp.MustCompile(`^(failed to solve|failed to run Build function|failed to compute cache key|failed to calculate checksum of ref \S+|dockerfile parse error on line \d+|rpc error: code = \w+ desc =):? `)
	metadata  = regexp.MustCompile(`^(?:\S+: )?failed to resolve source metadata for (\S+): (.*)$`)
)

// tidy shortens a message of BuildKit's to what concerns the user.
func tidy(message string) string {
	for {
		short := wrappings.ReplaceAllString(message, "")
		if short == message {
			break
		}
		message = short
	}
	if m := metadata.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("image %s: %s", m[1], strings.TrimPrefix(m[2], m[1]+": "))
	}
	return message
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// cutAny removes the first of prefixes that s has.
func cutAny(s string, prefixes ...string) (string, bool) {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(s, p); ok {
			return rest, true
		}
	}
	return s, false
}
