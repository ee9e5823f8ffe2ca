// Command pull fetches a published image as any other client would, checks every byte of it against
// its digest, unpacks it into a temporary directory and runs its program there.
//
//	pull -token-file FILE REGISTRY/REPOSITORY:TAG@DIGEST [ARG]...
//
// It exits with the program's exit code, or 1 if the image is not what its reference says. It needs
// root, for chroot.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func main() {
	tokenFile := flag.String("token-file", "", "`file` with a token of the registry's server")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: pull -token-file FILE REGISTRY/REPOSITORY:TAG@DIGEST [ARG]...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *tokenFile, flag.Arg(0), flag.Args()[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, tokenFile, ref string, args []string) error {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return fmt.Errorf("-token-file: %w", err)
	}
	img, err := pull(ctx, ref, strings.TrimSpace(string(token)))
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	fmt.Printf("pulled   %s\n", ref)
	fmt.Println("verified the manifest, the configuration and every layer against their digests")
	dir, err := os.MkdirTemp("", "kiln-pull-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unpack(img, dir); err != nil {
		return fmt.Errorf("%s: unpack: %w", ref, err)
	}
	return start(ctx, img, dir, args)
}

// pull fetches an image by its tag and checks that what comes is what the digest promises.
func pull(ctx context.Context, ref, token string) (v1.Image, error) {
	tagged, promised, ok := strings.Cut(ref, "@")
	if !ok {
		return nil, errors.New("no digest: nothing to check the image against")
	}
	want, err := v1.NewHash(promised)
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag(tagged, name.StrictValidation)
	if err != nil {
		return nil, err
	}
	desc, err := remote.Get(tag, remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: "kiln", Password: token}))
	if err != nil {
		return nil, err
	}
	got, _, err := v1.SHA256(strings.NewReader(string(desc.Manifest)))
	if err != nil {
		return nil, err
	}
	if got != want {
		return nil, fmt.Errorf("the manifest has digest %s", got)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, err
	}
	return img, validate.Image(img)
}

// start runs the image's program with dir as its root directory.
func start(ctx context.Context, img v1.Image, dir string, args []string) error {
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	argv := append([]string(nil), cfg.Config.Entrypoint...)
	if len(args) == 0 {
		args = cfg.Config.Cmd
	}
	if argv = append(argv, args...); len(argv) == 0 {
		return errors.New("the image names no program")
	}
	if !strings.HasPrefix(argv[0], "/") {
		return fmt.Errorf("program %q: not an absolute path", argv[0])
	}
	fmt.Printf("running  %s\n", strings.Join(argv, " "))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = cfg.Config.Env, "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}
