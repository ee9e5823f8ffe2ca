package main

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/pflag"

	"kiln/taskspec"
	"kiln/worker"
)

// stepConfig says what steps of runs may do on a server.
type stepConfig struct {
	privileged bool
	aliases    []string
	maxLog     int // MiB
}

func (s *stepConfig) add(f *pflag.FlagSet) {
	f.BoolVar(&s.privileged, "allow-privileged", false, "execute privileged containers of runs that allow them: such a container can take over this host")
	f.StringArrayVar(&s.aliases, "image-alias", nil, "`NAME=IMAGE`: what a cmd step that begins with NAME executes; may be repeated")
	f.IntVar(&s.maxLog, "max-log", worker.DefaultMaxLog>>20, "`MiB` of output that are kept of one run; what comes after is dropped, the run goes on")
}

var aliasName = regexp.MustCompile(`^[a-zA-Z0-9]+$`)

// images returns the image aliases of the task language: the usual ones, with those of the operator.
func (s *stepConfig) images() (map[string]string, error) {
	table := maps.Clone(taskspec.DefaultImageAliases)
	var errs []error
	for _, entry := range s.aliases {
		name, image, _ := strings.Cut(entry, "=")
		if !aliasName.MatchString(name) {
			errs = append(errs, fmt.Errorf("--image-alias %q: want NAME=IMAGE, the name of letters and digits only", entry))
		} else if _, err := reference.ParseNormalizedNamed(image); err != nil {
			errs = append(errs, fmt.Errorf("--image-alias %q: %q is no image reference: %w", entry, image, err))
		}
		table[name] = image
	}
	return table, errors.Join(errs...)
}

func (s *stepConfig) validate() error {
	_, err := s.images()
	if s.maxLog < 1 {
		err = errors.Join(err, fmt.Errorf("--max-log %d: want 1 or more", s.maxLog))
	}
	return err
}

// equip gives a worker what its steps may do.
func (n *node) equip(w *worker.Worker) *worker.Worker {
	w.Images, _ = n.cfg.steps.images() // validated
	w.Privileged, w.MaxLog = n.cfg.steps.privileged, int64(n.cfg.steps.maxLog)<<20
	return w
}

// planOptions are those of the plan by which a request is checked: the worker's.
func (n *node) planOptions(secrets map[string]string) worker.PlanOptions {
	images, _ := n.cfg.steps.images() // validated
	return worker.PlanOptions{Registry: n.host, Secrets: secrets, Images: images, Privileged: n.cfg.steps.privileged}
}
