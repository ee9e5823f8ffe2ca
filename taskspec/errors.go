package taskspec

import (
	"strconv"
	"strings"
)

// An Error is one mistake in a document. Line and Col are 1-based, count characters in the source
// the author wrote, and are 0 where no place can be named.
type Error struct {
	File     string
	Line     int
	Col      int
	Step     string // ID of the step it is in, if any
	Property string // property it is about, if any
	Message  string
}

// Error returns "file:line:col: step "x": property: message", leaving out what is not known.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
	}
	if e.Line > 0 {
		b.WriteString(strconv.Itoa(e.Line))
		b.WriteByte(':')
		if e.Col > 0 {
			b.WriteString(strconv.Itoa(e.Col))
			b.WriteByte(':')
		}
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Step != "" {
		b.WriteString("step ")
		b.WriteString(strconv.Quote(e.Step))
		b.WriteString(": ")
	}
	if e.Property != "" {
		b.WriteString(e.Property)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Errors are all independent mistakes of a document, in the order of their places. It is the only error type that [Parse] and [Render] return.
type Errors []*Error

// Error returns the messages, one a line.
func (es Errors) Error() string { return join(es) }

// Unwrap returns the errors one by one, for errors.Is and errors.As.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// Warnings are things in a valid document that the author probably did not mean.
type Warnings []*Error

// String returns the messages, one a line.
func (ws Warnings) String() string { return join(ws) }

func join(es []*Error) string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}
