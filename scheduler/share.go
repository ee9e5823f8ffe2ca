package scheduler

import (
	"maps"
	"slices"

	"kiln/internal/run"
)

// share has r hold the very texts, moves and pins that other holds where both are equal. Runs that one fact has
// made due have most of them in common, and thousands of such runs may wait.
func share(r, other *run.Run) {
	for _, text := range []struct{ of, as *string }{
		{&r.Lane, &other.Lane}, {&r.Reason, &other.Reason}, {(*string)(&r.State), (*string)(&other.State)},
		{&r.Cause.Kind, &other.Cause.Kind}, {&r.Cause.Reason, &other.Cause.Reason}, {&r.Cause.Event, &other.Cause.Event},
		{&r.Cause.By, &other.Cause.By}, {&r.Cause.Track, &other.Cause.Track}, {&r.Cause.Trigger, &other.Cause.Trigger},
		{&r.Cause.Repository, &other.Cause.Repository}, {&r.Cause.Ref, &other.Cause.Ref}, {&r.Cause.Commit, &other.Cause.Commit},
		{&r.Cause.Author, &other.Cause.Author}, {&r.Spec.Context, &other.Spec.Context}, {&r.Spec.Ref, &other.Spec.Ref},
		{&r.Spec.Platform, &other.Spec.Platform}, {&r.Spec.Pool, &other.Spec.Pool},
	} {
		if *text.of == *text.as {
			*text.of = *text.as
		}
	}
	if slices.Equal(r.Cause.Moved, other.Cause.Moved) {
		r.Cause.Moved = other.Cause.Moved
	}
	if maps.Equal(r.Spec.Pins, other.Spec.Pins) {
		r.Spec.Pins = other.Spec.Pins
	}
	a, b := r.Spec.TaskFile, other.Spec.TaskFile
	if a != nil && b != nil && slices.Equal(a.Content, b.Content) && slices.Equal(a.Values, b.Values) {
		a.Content, a.Values = b.Content, b.Values
	}
}
