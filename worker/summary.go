package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"kiln/internal/run"
)

// summarise ends the log of an attempt whose outcome is the run's: what became of each step, what was
// published, and what the images were made from.
func (a *attempt) summarise() {
	r := a.run
	steps, images := a.reports.told()
	r.Images = slices.Clone(r.Images)
	r.Steps, r.Cause.Commit = steps, cmp.Or(r.Cause.Commit, a.origin.Commit)
	for _, i := range images {
		r.Images = run.WithImage(r.Images, i)
	}
	if len(r.Steps) == 0 {
		return // it was never planned
	}
	a.logs.say("", "%s", strings.TrimSuffix(stepTable(r.Steps, r.Attempt), "\n"))
	if len(r.Images) > 0 {
		var b strings.Builder
		b.WriteString("images:")
		for _, i := range r.Images {
			fmt.Fprintf(&b, "\n  %s", i)
		}
		a.logs.say("", "%s", b.String())
	}
	if deps := r.Dependencies(); len(deps) > 0 {
		a.logs.say("", "the following dependencies were found:\n%s", strings.TrimSuffix(dependencyText(deps), "\n"))
	}
}

// stepTable has a line for each step. One that has not begun when the run ends was skipped.
func stepTable(steps []run.Step, attempt int) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "STEP\tKIND\tSTATUS\tDURATION\tEXIT\n")
	for _, s := range steps {
		state, took, exit := string(s.State), "-", "-"
		switch {
		case !s.State.Done():
			state = string(run.StepSkipped)
		case s.State == run.StepSucceeded && s.Error != "":
			state += ", failure ignored"
		case s.State == run.StepSucceeded && s.Attempt != attempt:
			state += fmt.Sprintf(" in attempt %d", s.Attempt)
		}
		if !s.Started.IsZero() && !s.Finished.IsZero() {
			took = duration(s.Finished.Sub(s.Started))
		}
		if s.ExitCode != nil {
			exit = strconv.Itoa(*s.ExitCode)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", oneLine(s.ID), s.Kind, state, took, exit)
	}
	_ = w.Flush() // to a string
	return b.String()
}

// duration is d to three digits or so.
func duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// dependencyText writes dependencies as ACR's logs have them.
func dependencyText(deps []run.Dependency) string {
	var b strings.Builder
	for _, d := range deps {
		if d.Image == nil {
			b.WriteString("- image: null\n")
		} else {
			b.WriteString("- image:\n")
			writeReference(&b, "    ", "    ", d.Image)
		}
		if d.Runtime != nil {
			b.WriteString("  runtime-dependency:\n")
			writeReference(&b, "    ", "    ", d.Runtime)
		}
		if len(d.Buildtime) > 0 {
			b.WriteString("  buildtime-dependency:\n")
			for _, ref := range d.Buildtime {
				writeReference(&b, "  - ", "    ", &ref)
			}
		}
		if d.Git.Revision == "" {
			b.WriteString("  git: {}\n")
		} else {
			fmt.Fprintf(&b, "  git:\n    git-head-revision: %s\n", d.Git.Revision)
		}
	}
	return b.String()
}

// writeReference writes the parts of a reference that it has, the first after an indentation of its own.
func writeReference(b *strings.Builder, first, indent string, ref *run.Reference) {
	for _, kv := range [][2]string{{"registry", ref.Registry}, {"repository", ref.Repository}, {"tag", ref.Tag}, {"digest", ref.Digest}} {
		if kv[1] != "" {
			fmt.Fprintf(b, "%s%s: %s\n", first, kv[0], kv[1])
			first = indent
		}
	}
}

// told is what the attempt has reported so far.
func (r *reporter) told() (steps []run.Step, images []run.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all.Steps), slices.Clone(r.all.Images)
}
