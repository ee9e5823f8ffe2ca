package main

import (
	"strings"

	"kiln/internal/run"
)

// remotePrefixes begin contexts that the server fetches.
var remotePrefixes = []string{"http://", "https://", "git://", "git@", "ssh://", "oci://", "github.com/"}

// isRemote reports whether a context is one that the server fetches.
func isRemote(s string) bool {
	lower := strings.ToLower(s)
	for _, p := range remotePrefixes {
		if strings.HasPrefix(lower, p) {
			return true
		}
	}
	return false
}

// checkSource reports whether a context is remote, and why it cannot be one.
func checkSource(s string) (remote bool, err error) {
	if !isRemote(s) {
		return false, checkContext(s)
	}
	if _, err := remoteContext(s); err != nil {
		return true, usagef("https://HOST/REPOSITORY.git#REF:DIRECTORY", "%w", err)
	}
	return true, nil
}

// remoteDockerfile sets the Dockerfile of a build whose context the server fetches: a path there.
func (c *cli) remoteDockerfile(spec *run.BuildSpec, file string) error {
	if file == "-" {
		b, err := readInput("standard input", c.In)
		return inline(spec, b, err)
	}
	spec.Dockerfile = strings.TrimPrefix(file, "./")
	return nil
}

// remoteTask returns the task of a run whose context the server fetches: a file there.
func (c *cli) remoteTask(f taskFlags) (*run.TaskFileSpec, error) {
	if f.file != "-" {
		return &run.TaskFileSpec{Name: strings.TrimPrefix(f.file, "./"), FromContext: true}, nil
	}
	return c.findTask(f.file, "")
}
