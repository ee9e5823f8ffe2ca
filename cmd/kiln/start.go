package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/source"
)

// A job is a run to start.
type job struct {
	dir    string // context; empty for none
	scan   source.ScanOptions
	submit apiclient.Submit
	flags  runFlags
}

// start submits a job, with its context if the server has not got it, and follows the run.
func (c *cli) start(ctx context.Context, j job) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	j.submit.Key = rand.Text()
	r, err := c.submit(ctx, client, j)
	if err != nil {
		return err
	}
	return c.finish(ctx, client, r, j.flags)
}

func (c *cli) submit(ctx context.Context, client *apiclient.Client, j job) (run.Run, error) {
	if j.dir == "" {
		return request(ctx, client, j.submit)
	}
	r, err := c.submitTree(ctx, client, j)
	if errors.Is(err, source.ErrChanged) {
		r, err = c.submitTree(ctx, client, j) // an editor or a compiler was at work
	}
	var answer *apiclient.Error
	switch {
	case err == nil || errors.As(err, &answer) || errors.Is(err, apiclient.ErrUnreachable):
		return r, err
	case ctx.Err() != nil:
		return run.Run{}, errors.New("interrupted before the run was submitted")
	}
	return run.Run{}, &usageError{err: err} // something about the directory
}

// submitTree submits a job as its directory is now. What is submitted is what was scanned.
func (c *cli) submitTree(ctx context.Context, client *apiclient.Client, j job) (run.Run, error) {
	tree, err := source.Scan(ctx, j.dir, j.scan)
	if err != nil {
		return run.Run{}, err
	}
	for _, w := range tree.Warnings {
		c.say("warning: " + w)
	}
	j.submit.Spec.Context = source.Ref(tree.ID())
	r, err := request(ctx, client, j.submit)
	var answer *apiclient.Error
	if !errors.As(err, &answer) || answer.Code != apiclient.CodeContextMissing {
		return r, err
	}
	if n := tree.Size(); n >= saySize {
		c.say(fmt.Sprintf("sending what is new of %s: %d MB in %d entries", j.dir, n>>20, len(tree.Entries)))
	}
	key, err := source.Key(j.dir)
	if err != nil {
		return run.Run{}, err
	}
	if err := source.Upload(ctx, client.HTTP, client.BaseURL, client.Token, key, tree, j.dir, nil); err != nil {
		return run.Run{}, err
	}
	return request(ctx, client, j.submit)
}

// lastWords is how long a request under way goes on when ctx ends, so that the run it makes is known.
const lastWords = 3 * time.Second

// request submits, and lets the server answer when ctx ends.
func request(ctx context.Context, client *apiclient.Client, s apiclient.Submit) (run.Run, error) {
	if ctx.Err() != nil {
		return run.Run{}, context.Cause(ctx)
	}
	patient, cancel := lingering(ctx)
	defer cancel()
	return client.Submit(patient, s)
}

// lingering returns a context that ends lastWords after ctx.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(lastWords, cancel)
		context.AfterFunc(patient, func() { timer.Stop() })
	})
	return patient, func() { stop(); cancel() }
}

// saySize is the size of a context from which its transfer is announced, in bytes.
const saySize = 8 << 20

// say prints a sentence about what goes on.
func (c *cli) say(s string) {
	if !c.quiet {
		fmt.Fprintf(c.Err, "kiln: %s\n", render.Clean(s))
	}
}

// finish follows a run that has been submitted, unless told not to wait, and prints what came of it.
func (c *cli) finish(ctx context.Context, client *apiclient.Client, r run.Run, f runFlags) error {
	if f.noWait {
		if f.output.json() {
			return c.printJSON(r)
		}
		fmt.Fprintln(c.Out, r.ID)
		return nil
	}
	r, err := c.follow(ctx, client, r)
	if err != nil {
		return err
	}
	if f.output.json() {
		if err := c.printJSON(r); err != nil {
			return err
		}
	} else {
		c.printImages(r)
	}
	return outcome(r)
}

// printImages prints what a run has published or, if it published nothing, the digests it built.
func (c *cli) printImages(r run.Run) {
	for _, image := range r.Images {
		fmt.Fprintln(c.Out, image)
	}
	if len(r.Images) > 0 || r.State != run.Succeeded {
		return
	}
	for _, s := range r.Steps {
		if s.Kind == "build" && s.Output != nil {
			fmt.Fprintln(c.Out, s.Output.Digest)
		}
	}
}
