package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1 // a run ended badly, or kiln itself could not go on
	exitUsage       = 2 // the command line, the configuration or the input is wrong
	exitUnreachable = 3 // no server
)

// A usageError says what is wrong with what the user gave, and what to try instead.
type usageError struct {
	err error
	try string // may be empty
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(try, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), try: try}
}

// A runError is a run that did not succeed.
type runError struct{ run run.Run }

func (e *runError) Error() string {
	s := fmt.Sprintf("run %s: %s", e.run.ID, e.run.State)
	if e.run.Reason != "" {
		s += ": " + e.run.Reason
	}
	return s
}

// outcome returns the error of a run that has ended badly.
func outcome(r run.Run) error {
	if r.State == run.Succeeded {
		return nil
	}
	return &runError{r}
}

// errReported ends a command that has already said what is wrong.
var errReported = errors.New("already reported")

// report prints err for a person and returns the exit code.
func (c *cli) report(err error) int {
	if err == nil {
		return exitOK
	}
	switch {
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	printProblem(c.Err, err)
	if try := remedy(err); try != "" {
		fmt.Fprintf(c.Err, "Try: %s\n", render.Clean(try))
	}
	return exitCode(err)
}

// printProblem prints one line, or one for each mistake in a document of the user's.
func printProblem(w io.Writer, err error) {
	var answer *apiclient.Error
	if !errors.As(err, &answer) || len(answer.Problems) == 0 {
		for line := range strings.Lines(strings.TrimSpace(err.Error())) {
			fmt.Fprintf(w, "kiln: %s\n", render.Clean(strings.TrimSuffix(line, "\n")))
		}
		return
	}
	if answer.Message != "" {
		fmt.Fprintf(w, "kiln: %s\n", render.Clean(answer.Message))
	}
	for _, p := range answer.Problems {
		kind := ""
		if p.Warning {
			kind = "warning: "
		}
		fmt.Fprintf(w, "%s%s\n", kind, render.Clean(p.String()))
	}
}

func exitCode(err error) int {
	var usage *usageError
	var answer *apiclient.Error
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, apiclient.ErrUnreachable):
		return exitUnreachable
	case errors.As(err, &answer):
		switch {
		case answer.Code == apiclient.CodeUnavailable:
			return exitUnreachable
		case answer.Status/100 == 4:
			return exitUsage
		}
	}
	return exitFailed
}

// remedy returns what the user may try after err, or nothing.
func remedy(err error) string {
	var usage *usageError
	var failed *runError
	var unfollowed *followError
	var answer *apiclient.Error
	switch {
	case errors.As(err, &usage):
		return usage.try
	case errors.As(err, &unfollowed):
		return "kiln logs -f " + unfollowed.id
	case errors.As(err, &failed):
		return "kiln show " + failed.run.ID
	case errors.Is(err, apiclient.ErrUnreachable):
		return "kiln serve, or name a server that runs with --server or KILN_SERVER"
	case errors.As(err, &answer):
		return answerRemedy(answer)
	}
	return ""
}

func answerRemedy(e *apiclient.Error) string {
	if e.Remedy != "" {
		return e.Remedy
	}
	switch e.Code {
	case apiclient.CodeUnauthorized:
		return "set KILN_TOKEN to a token of this server, or name its data directory with --data"
	case apiclient.CodeUnavailable:
		return "again in a moment"
	}
	return ""
}

// An outputFlag is the value of -o.
type outputFlag struct {
	value   string
	allowed []string
}

func (o *outputFlag) String() string { return o.value }

// Set takes one of the allowed formats.
func (o *outputFlag) Set(s string) error {
	for _, a := range o.allowed {
		if s == a {
			o.value = s
			return nil
		}
	}
	return fmt.Errorf("want %s", strings.Join(o.allowed, " or "))
}

// Type is what the flag's help shows.
func (o *outputFlag) Type() string { return strings.Join(o.allowed, "|") }

func (o *outputFlag) json() bool { return o.value == "json" }

// printJSON writes v as the one JSON document of a command.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
