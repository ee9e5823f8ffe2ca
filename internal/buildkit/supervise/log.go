package supervise

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
)

// maxLine bounds a line of the daemon's output; longer ones are cut.
const maxLine = 4096

// A logReader takes a daemon's standard error: log records as lines of JSON, which it passes on, and
// anything else, which it keeps for error messages.
type logReader struct {
	log *slog.Logger

	mu    sync.Mutex
	rest  []byte // the line that has begun
	crash string // the first line of a Go program's crash
	plain string // the last line that is not a log record
}

// Write takes output as it comes. It never fails.
func (r *logReader) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		r.add(p[:i])
		r.line()
		p = p[i+1:]
	}
	r.add(p)
	return n, nil
}

// flush takes a line that has no end.
func (r *logReader) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line()
}

func (r *logReader) add(p []byte) {
	r.rest = append(r.rest, p[:min(len(p), maxLine-len(r.rest))]...)
}

// line takes the line in rest.
func (r *logReader) line() {
	line := strings.TrimSpace(string(r.rest))
	r.rest = r.rest[:0]
	if line == "" || r.record(line) {
		return
	}
	r.plain = line
	if r.crash == "" && (strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:")) {
		r.crash = line
	}
	r.log.Warn("build daemon says", "text", line)
}

// record passes a line on if it is a log record.
func (r *logReader) record(line string) bool {
	var fields map[string]any
	if line[0] != '{' || json.Unmarshal([]byte(line), &fields) != nil {
		return false
	}
	var level slog.Level
	name, _ := fields[slog.LevelKey].(string)
	msg, ok := fields[slog.MessageKey].(string)
	if !ok || level.UnmarshalText([]byte(name)) != nil {
		return false
	}
	for _, key := range []string{slog.LevelKey, slog.MessageKey, slog.TimeKey} {
		delete(fields, key)
	}
	attrs := make([]slog.Attr, 0, len(fields))
	for k, v := range fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	r.log.LogAttrs(context.Background(), level, msg, attrs...)
	return true
}

// lastWords is the line that says best why the daemon ended.
func (r *logReader) lastWords() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return cmp.Or(r.crash, r.plain)
}
