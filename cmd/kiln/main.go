// Command kiln builds, tests and publishes container images: the server and its client in one binary.
//
// Results go to standard output, progress and problems to standard error. The exit code is 0 if all
// went well, 1 if a run ended badly, 2 if the command line or its input is wrong, and 3 if the server
// cannot be reached.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // timers have time zones, also where the system knows none

	"kiln/internal/buildkit/cni"
)

func main() {
	if cni.Called(os.Args[0], os.Getenv("CNI_COMMAND")) { // by a build daemon, see newCNICommand
		os.Exit(cni.Main(os.Args[0]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], environment{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv,
	})
	stop()
	os.Exit(code)
}
