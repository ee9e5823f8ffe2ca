// Package audit keeps the record of who has changed what, and of who was not let.
//
// Recording never blocks and never fails: records are queued in memory, and stored in the stream AUDIT several at
// a time, in order, within a second. What cannot be stored, because the message store is away or slower than what
// is recorded, is written to the server's log instead and counted. A crash loses what was recorded in the last second.
// Attempts that are denied are recorded up to a number per minute, for each address and in all; how many more there
// were is recorded after that minute.
package audit

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"kiln/internal/bus"
	"kiln/internal/event"
)

const (
	maxQueued   = 4096                   // records in memory
	maxBatch    = 256                    // records of a message
	gather      = 250 * time.Millisecond // how long a record waits for others
	storeWithin = 5 * time.Second        // how long a message may take
	maxText     = 512                    // bytes of each text of a record
)

// A Log is the record of a server. It is safe for concurrent use.
type Log struct {
	bus    *bus.Bus
	log    *slog.Logger
	queue  chan event.Audit
	lost   atomic.Uint64
	denied limiter
}

// New returns a log that Run stores.
func New(b *bus.Bus, log *slog.Logger) *Log {
	return &Log{bus: b, log: log, queue: make(chan event.Audit, maxQueued)}
}

// Lost is the number of records that could not be stored since the start. They are in the server's log.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Record notes what a request has come to. A nil Log notes nothing.
func (l *Log) Record(a event.Audit) {
	if l == nil {
		return
	}
	if a.Time.IsZero() {
		a.Time = time.Now().UTC()
	}
	if (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden) && !l.denied.admit(a.From) {
		return
	}
	for _, text := range []*string{&a.Who, &a.What, &a.From, &a.Forwarded, &a.Code} {
		*text = clip(*text)
	}
	l.enqueue(a)
}

func (l *Log) enqueue(a event.Audit) {
	select {
	case l.queue <- a:
	default:
		l.lose(a)
	}
}

// lose writes records to the server's log.
func (l *Log) lose(records ...event.Audit) {
	for _, a := range records {
		l.lost.Add(1)
		l.log.Warn("audit record not stored", "time", a.Time, "who", a.Who, "role", a.Role, "token", a.Token, "method", a.Method, "what", a.What,
			"from", a.From, "status", a.Status, "code", a.Code, "left", a.Left)
	}
}

// clip shortens a text to what a record has room for, and makes it one that JSON has.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "?")
	}
	return s
}

// Run stores records until ctx ends, and then what is left.
func (l *Log) Run(ctx context.Context) error {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		select {
		case a := <-l.queue:
			l.store(ctx, l.batch(ctx, a))
		case <-minute.C:
			if n := l.denied.renew(); n > 0 {
				l.enqueue(event.Audit{Time: time.Now().UTC(), Status: http.StatusForbidden, Left: n})
			}
		case <-ctx.Done():
			if n := l.denied.renew(); n > 0 {
				l.enqueue(event.Audit{Time: time.Now().UTC(), Status: http.StatusForbidden, Left: n})
			}
			l.drain(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// batch waits for what comes soon after a record.
func (l *Log) batch(ctx context.Context, first event.Audit) []event.Audit {
	list := []event.Audit{first}
	soon := time.NewTimer(gather)
	defer soon.Stop()
	for len(list) < maxBatch {
		select {
		case a := <-l.queue:
			list = append(list, a)
		case <-soon.C:
			return list
		case <-ctx.Done():
			return list
		}
	}
	return list
}

// drain stores what is queued.
func (l *Log) drain(ctx context.Context) {
	for {
		var list []event.Audit
		for len(list) < maxBatch && len(l.queue) > 0 {
			list = append(list, <-l.queue)
		}
		if len(list) == 0 {
			return
		}
		l.store(ctx, list)
	}
}

func (l *Log) store(ctx context.Context, list []event.Audit) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeWithin)
	defer cancel()
	data, err := json.Marshal(event.Audits{Records: list})
	if err == nil {
		_, err = l.bus.Append(ctx, event.SubjectAudit, json.RawMessage(data))
	}
	if err != nil {
		l.log.Warn("audit records cannot be stored", "records", len(list), "err", err)
		l.lose(list...)
	}
}

// Bounds of what is recorded of attempts that are denied, in a minute.
const (
	maxDenied     = 300
	maxDeniedFrom = 30   // from one address
	maxAddresses  = 1000 // that are told apart
)

// A limiter bounds what is recorded of attempts that are denied.
type limiter struct {
	mu       sync.Mutex
	admitted map[string]int // by address, in this minute
	all      int
	left     int
}

// admit reports whether an attempt from an address is to be recorded.
func (l *limiter) admit(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.admitted == nil {
		l.admitted = map[string]int{}
	}
	n, known := l.admitted[from]
	if l.all >= maxDenied || n >= maxDeniedFrom || !known && len(l.admitted) >= maxAddresses {
		l.left++
		return false
	}
	l.all++
	l.admitted[from] = n + 1
	return true
}

// renew begins another minute, and returns how many attempts were not admitted in the last one.
func (l *limiter) renew() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.left
	clear(l.admitted)
	l.all, l.left = 0, 0
	return left
}

// Of returns the record of a request as far as the request tells.
func Of(r *http.Request, what string) event.Audit {
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	return event.Audit{Method: r.Method, What: what, From: from, Forwarded: r.Header.Get("X-Forwarded-For")}
}
