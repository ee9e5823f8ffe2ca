package clock_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/triggers/clock"
)

// A bell is an alarm that went off, and when.
type bell struct {
	alarm event.Alarm
	at    time.Time
}

func start(t *testing.T) *clock.Clock {
	t.Helper()
	return &clock.Clock{Bus: natstest.Start(t), Log: slog.New(slog.DiscardHandler)}
}

// run runs the clock until stop is called, and returns what goes off.
func run(t *testing.T, c *clock.Clock, handle func(event.Alarm) error) (bells <-chan bell, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	rang := make(chan bell, 20_000)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(_ context.Context, a event.Alarm) error {
			rang <- bell{a, time.Now()}
			if handle == nil {
				return nil
			}
			return handle(a)
		})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return rang, stop
}

func next(t *testing.T, bells <-chan bell) bell {
	t.Helper()
	select {
	case b := <-bells:
		return b
	case <-time.After(time.Minute):
		t.Fatal("no alarm went off within a minute")
		panic("unreachable")
	}
}

func set(t *testing.T, c *clock.Clock, alarms ...event.Alarm) {
	t.Helper()
	for _, a := range alarms {
		if err := c.Set(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
}

// remains returns how many messages of a subject filter the stream of alarms holds.
func remains(t *testing.T, b *bus.Bus, filter string) int {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), bus.StreamTimers)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(filter))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, count := range info.State.Subjects {
		n += int(count)
	}
	return n
}

func alarm(track string, at time.Time) event.Alarm {
	return event.Alarm{TaskUID: "t1", Track: track, Timer: "nightly", At: at.UTC()}
}

func TestAlarmGoesOffAtItsTimeAndOnce(t *testing.T) {
	t.Parallel()
	c := start(t)
	bells, stop := run(t, c, nil)
	late := alarm("refs/heads/main", time.Now().Add(1300*time.Millisecond))
	past := alarm("refs/heads/old", time.Now().Add(-48*time.Hour))
	set(t, c, late, past)
	first, second := next(t, bells), next(t, bells)
	if first.alarm != past || second.alarm != late {
		t.Fatalf("went off: %v, %v, want %v, %v", first.alarm, second.alarm, past, late)
	}
	if early := late.At.Sub(second.at); early > 0 {
		t.Errorf("went off %v early", early)
	}
	if after := second.at.Sub(late.At); after > time.Second {
		t.Errorf("went off %v after its time", after)
	}
	stop()
	if n := remains(t, c.Bus, event.ScheduleFilter); n != 0 {
		t.Errorf("%d schedules remain", n)
	}
	if len(bells) != 0 {
		t.Errorf("%d more alarms went off", len(bells))
	}
}

func TestSettingAnAlarmReplacesTheEarlierOne(t *testing.T) {
	t.Parallel()
	c := start(t)
	bells, _ := run(t, c, nil)
	now := time.Now()
	replaced, kept, last := alarm("a", now.Add(time.Second)), alarm("a", now.Add(2*time.Second)), alarm("b", now.Add(2500*time.Millisecond))
	set(t, c, replaced, kept, last)
	if n := remains(t, c.Bus, event.ScheduleFilter); n != 2 {
		t.Errorf("%d schedules, want one of each track", n)
	}
	if a, b := next(t, bells), next(t, bells); a.alarm != kept || b.alarm != last {
		t.Errorf("went off: %v, %v, want %v, %v", a.alarm, b.alarm, kept, last)
	}
}

func TestClearedAlarmDoesNotGoOff(t *testing.T) {
	t.Parallel()
	c := start(t)
	bells, _ := run(t, c, nil)
	now := time.Now()
	last := alarm("b", now.Add(1500*time.Millisecond))
	set(t, c, alarm("a", now.Add(time.Second)), last)
	for range 2 {
		if err := c.Clear(t.Context(), "t1", "a"); err != nil {
			t.Fatal(err)
		}
	}
	if b := next(t, bells); b.alarm != last {
		t.Errorf("went off: %v, want %v", b.alarm, last)
	}
}

func TestAlarmWhoseHandlerFailsComesAgain(t *testing.T) {
	t.Parallel()
	c := start(t)
	var tries atomic.Int32
	bells, _ := run(t, c, func(event.Alarm) error {
		if tries.Add(1) == 1 {
			return errors.New("the disk is full")
		}
		return nil
	})
	a := alarm("a", time.Now())
	set(t, c, a)
	if x, y := next(t, bells), next(t, bells); x.alarm != a || y.alarm != a {
		t.Errorf("went off: %v, %v, want %v twice", x.alarm, y.alarm, a)
	}
}

func TestAlarmsThatTakeLongHoldUpNoOthers(t *testing.T) {
	t.Parallel()
	c := start(t)
	end := make(chan struct{})
	bells, stop := run(t, c, func(a event.Alarm) error {
		if a.Track != "timer" {
			<-end
		}
		return nil
	})
	now := time.Now()
	for i := range 100 {
		set(t, c, alarm(fmt.Sprint("dead", i), now))
	}
	for range 100 {
		next(t, bells)
	}
	set(t, c, alarm("timer", time.Now()))
	if b := next(t, bells); b.alarm.Track != "timer" {
		t.Errorf("went off: %v, want the timer", b.alarm)
	}
	close(end)
	stop()
}

// A timer sets its next alarm while it handles one: the track never goes silent.
func TestAlarmIsSetAgainFromItsHandler(t *testing.T) {
	t.Parallel()
	c := start(t)
	bells, stop := run(t, c, func(a event.Alarm) error {
		a.At = time.Now().UTC()
		return c.Set(t.Context(), a)
	})
	set(t, c, alarm("a", time.Now()))
	for range 4 {
		next(t, bells)
	}
	stop()
	if n := remains(t, c.Bus, event.SubjectTimers); n > 2 {
		t.Errorf("%d messages of one track remain, want at most the next alarm and the last that went off", n)
	}
}

// open starts a server on a directory.
func open(t *testing.T, dir string) (c *clock.Clock, shutdown func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := s.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Open(t.Context(), nc, log)
	if err != nil {
		t.Fatal(err)
	}
	shutdown = sync.OnceFunc(func() { nc.Close(); s.Shutdown() })
	t.Cleanup(shutdown)
	return &clock.Clock{Bus: b, Log: log}, shutdown
}

func TestAlarmsSurviveARestart(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c, shutdown := open(t, dir)
			now := time.Now()
			missed, due, cleared := alarm("a", now.Add(100*time.Millisecond)), alarm("b", now.Add(3*time.Second)), alarm("c", now.Add(2*time.Second))
			set(t, c, missed, due, cleared)
			if err := c.Clear(t.Context(), "t1", "c"); err != nil {
				t.Fatal(err)
			}
			if killed { // what is on disk while the server runs is what a killed one leaves
				left := t.TempDir()
				if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				dir = left
			}
			shutdown()

			c, shutdown = open(t, dir)
			bells, stop := run(t, c, nil)
			if a, b := next(t, bells), next(t, bells); a.alarm != missed || b.alarm != due {
				t.Errorf("went off: %v, %v, want %v, %v", a.alarm, b.alarm, missed, due)
			}
			stop()
			shutdown()
		})
	}
}

func TestTenThousandAlarmsOfWhichAThousandGoOffTogether(t *testing.T) {
	t.Parallel()
	c := start(t)
	bells, _ := run(t, c, nil)
	const all, together = 10_000, 1000
	begin := time.Now()
	at := begin.Add(4 * time.Second).Truncate(time.Second)
	var acks []bus.Ack
	for i := range all {
		a := event.Alarm{TaskUID: fmt.Sprintf("t%d", i), Track: "timer/nightly", At: at}
		if i%(all/together) != 0 {
			a.At = at.Add(time.Hour)
		}
		ack, err := c.SetAsync(a)
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatal(bus.MapError(err))
		}
	}
	took := time.Since(begin)
	t.Logf("%d alarms set in %v", all, took)
	last := time.Time{}
	seen := map[string]bool{}
	for range together {
		b := next(t, bells)
		if last = b.at; b.at.Before(b.alarm.At) || seen[b.alarm.TaskUID] {
			t.Fatalf("%s went off at %v, set to %v, twice: %v", b.alarm.TaskUID, b.at, b.alarm.At, seen[b.alarm.TaskUID])
		}
		seen[b.alarm.TaskUID] = true
	}
	t.Logf("the last of %d came %v after their time", together, last.Sub(at))
	if n := remains(t, c.Bus, event.ScheduleFilter); n != all-together {
		t.Errorf("%d schedules remain, want %d", n, all-together)
	}
}
