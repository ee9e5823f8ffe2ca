package apiclient

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxEvent bounds one event of a stream, in bytes.
const maxEvent = 8 << 20

// errEventSize is returned for an event above maxEvent.
var errEventSize = fmt.Errorf("event larger than %d bytes", maxEvent)

// An sseEvent is one server-sent event.
type sseEvent struct {
	name string
	id   string
	data []byte
}

// An eventReader reads server-sent events, as the HTML standard defines them (section 9.2.6), apart
// from "retry", and from a lone carriage return as the end of a line, which no server here sends.
type eventReader struct {
	s      *bufio.Scanner
	onLine func() // called for every line, comments included
}

func newEventReader(r io.Reader) *eventReader {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxEvent)
	return &eventReader{s: s}
}

// next returns the next event, io.EOF at the end of the stream, or errEventSize. An event that is
// cut off by the end of the stream is dropped.
func (r *eventReader) next() (sseEvent, error) {
	var e sseEvent
	var some bool
	for r.s.Scan() {
		if r.onLine != nil {
			r.onLine()
		}
		line := r.s.Bytes()
		if len(line) == 0 {
			if some {
				return e, nil
			}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.name, some = string(value), true
		case "id":
			e.id, some = string(value), true
		case "data":
			if len(e.data)+len(value)+1 > maxEvent {
				return e, errEventSize
			}
			if e.data != nil {
				e.data = append(e.data, '\n')
			}
			e.data, some = append(e.data, value...), true
		}
	}
	switch err := r.s.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return e, errEventSize
	case err != nil:
		return e, err
	}
	return e, io.EOF
}
