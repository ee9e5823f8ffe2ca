// Package shim is the docker program that containers find, and the other side of it; and, beside that, a program
// that writes files where only containers can.
//
// The program is a file of two kilobytes that needs nothing of the image. It hands what it is asked through a
// socket of the container, over the session of BuildKit, to whoever serves it: there is no Docker daemon, and
// no socket of one. What is served is for the server to decide; the program knows no command.
//
// A connection carries one command. The program sends fields: a byte that says what it is, text, a zero byte.
//
//	d  the working directory, empty if it cannot be told
//	a  an argument, in order
//	e  a NAME=VALUE of its environment
//	.  the end
//
// It gets frames: a byte that says what it is, a length of four bytes, the highest first, and content.
//
//	o  for standard output
//	r  for standard error
//	i  without content: all of standard input is to be sent, then the sending side is to be closed
//	x  one byte, the exit code
//
// What a container sends is bounded and trusted with nothing: it can ask for what the step's author could.
package shim

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"kiln/internal/solve"
)

// Where a container has the program and its socket.
const (
	Program = "/usr/local/bin/docker"
	Socket  = "/run/kiln/docker.sock"
)

const (
	// maxRequest is more than what the kernel hands to a new process with usual limits, in bytes.
	maxRequest = 4 << 20
	// maxInput is how much of standard input is taken, in bytes: a Dockerfile, a password.
	maxInput = 1 << 20
	maxFrame = 64 << 10
)

//go:embed docker/docker-amd64
var amd64 []byte

//go:embed docker/docker-arm64
var arm64 []byte

// Binary returns the docker program for a processor as Go names it, nil if there is none.
func Binary(architecture string) []byte {
	return map[string][]byte{"amd64": amd64, "arm64": arm64}[architecture]
}

//go:embed put/put-amd64
var putAMD64 []byte

//go:embed put/put-arm64
var putARM64 []byte

// Put returns, for a processor as Go names it, the program that writes its standard input to the file that is its
// argument, with the directories that it is in; of a name that ends with a slash, only these. Its exit code is the
// number of the kernel's error. Nil means that there is none for that processor.
func Put(architecture string) []byte {
	return map[string][]byte{"amd64": putAMD64, "arm64": putARM64}[architecture]
}

// errGone is why a command ends that nobody waits for.
var errGone = errors.New("the docker program has ended")

// Serve answers one program, and returns when it has ended. The command's context ends with ctx and with the
// program. A stream that ends by an error ends both.
func Serve(ctx context.Context, stream io.ReadWriter, run solve.DockerFunc) error {
	r := bufio.NewReader(stream)
	c, err := request(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &frames{w: stream}
	in := &input{ended: make(chan struct{})}
	go in.read(r, func() { cancel(errGone) })
	c.Stdout, c.Stderr = writer{out, 'o'}, writer{out, 'r'}
	c.Stdin = func() ([]byte, error) { return in.all(ctx, out) }
	code := run(ctx, c)
	err = out.frame('x', []byte{byte(code)})
	<-in.ended // the program closes its side when it knows the code
	return err
}

// request reads a command.
func request(r *bufio.Reader) (c solve.DockerCommand, err error) {
	for left := maxRequest; ; {
		kind, err := r.ReadByte()
		if err != nil {
			return c, fmt.Errorf("docker program: %w", err)
		}
		text, err := field(r, left)
		if err != nil {
			return c, fmt.Errorf("docker program: %w", err)
		}
		left -= len(text) + 1
		switch kind {
		case 'd':
			c.Dir = text
		case 'a':
			c.Args = append(c.Args, text)
		case 'e':
			c.Env = append(c.Env, text)
		case '.':
			return c, nil
		default:
			return c, fmt.Errorf("docker program: field %q is not known", kind)
		}
	}
}

// field reads text up to a zero byte, of which at most limit bytes.
func field(r *bufio.Reader, limit int) (string, error) {
	var text []byte
	for {
		part, err := r.ReadSlice(0)
		if len(text)+len(part) > limit {
			return "", fmt.Errorf("arguments and environment have more than %d bytes", maxRequest)
		}
		text = append(text, part...)
		if err == nil {
			return string(bytes.TrimSuffix(text, []byte{0})), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
}

// frames writes frames, one at a time.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) frame(kind byte, content []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content)))
	_, err := f.w.Write(append(head, content...))
	return err
}

// A writer is one of the program's outputs.
type writer struct {
	out  *frames
	kind byte
}

func (w writer) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := p[n:min(len(p), n+maxFrame)]
		if err := w.out.frame(w.kind, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(p), nil
}

// input is what comes from a program after its command.
type input struct {
	mu     sync.Mutex
	wanted bool
	data   []byte
	over   bool          // there was more than is taken
	ended  chan struct{} // closed when nothing more comes
}

// read takes in what comes until its end, and calls gone unless that is the end of an input that is wanted.
func (in *input) read(r io.Reader, gone func()) {
	defer close(in.ended)
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		in.mu.Lock()
		if in.wanted {
			in.over = in.over || len(in.data)+n > maxInput
			in.data = append(in.data, buf[:min(n, maxInput-len(in.data))]...)
		}
		wanted := in.wanted
		in.mu.Unlock()
		if err != nil {
			if !wanted || !errors.Is(err, io.EOF) {
				gone()
			}
			return
		}
	}
}

// all asks for standard input and returns it.
func (in *input) all(ctx context.Context, out *frames) ([]byte, error) {
	in.mu.Lock()
	again := in.wanted
	in.wanted = true
	in.mu.Unlock()
	if !again {
		if err := out.frame('i', nil); err != nil {
			return nil, err
		}
	}
	select {
	case <-in.ended:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.over {
		return nil, fmt.Errorf("standard input has more than %d bytes", maxInput)
	}
	return in.data, nil
}
