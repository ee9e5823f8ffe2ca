package triggers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/triggers"
	"kiln/triggers/decide"
)

// decider runs a Decider until the returned function is called, which waits for its end.
func decider(t *testing.T, b *bus.Bus) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		d := &triggers.Decider{Bus: b, Log: slog.New(slog.DiscardHandler)}
		done <- d.Run(ctx)
		close(done)
	}()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// request publishes a request; each delivery is another message of the same event.
func request(t *testing.T, b *bus.Bus, delivery int, req event.RunRequested) {
	t.Helper()
	ev, err := event.New("ev-"+req.Key, "/test", event.TypeRunRequested, time.Now().UTC(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(t.Context(), event.RequestSubject(req.Key), fmt.Sprint(req.Key, delivery), ev); err != nil {
		t.Fatal(err)
	}
}

// hints returns the run IDs that are told for a request.
func hints(t *testing.T, b *bus.Bus, key string) <-chan string {
	t.Helper()
	ids := make(chan string, 64)
	unsubscribe, err := b.Subscribe(event.DecidedSubject(key), func(data []byte) {
		var id string
		if err := json.Unmarshal(data, &id); err != nil {
			t.Errorf("hint %s: %v", data, err)
		}
		ids <- id
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unsubscribe)
	return ids
}

func next(t *testing.T, ids <-chan string) string {
	t.Helper()
	select {
	case id := <-ids:
		return id
	case <-time.After(time.Minute):
		t.Fatal("no hint within a minute")
		return ""
	}
}

// decisions returns what is stored for a request.
func decisions(t *testing.T, b *bus.Bus, key string) []event.Decision {
	t.Helper()
	var all []event.Decision
	err := b.Tail(t.Context(), bus.StreamDecisions, event.DecisionSubject(event.QuickTask, key), 0, false, func(_ uint64, data []byte) bool {
		var d event.Decision
		if err := json.Unmarshal(data, &d); err != nil {
			t.Error(err)
		}
		all = append(all, d)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantOneRun checks that a request was decided once, for the run with that ID.
func wantOneRun(t *testing.T, b *bus.Bus, key, id string) {
	t.Helper()
	all := decisions(t, b, key)
	if len(all) != 1 || all[0].Run == nil || all[0].Run.ID != id || !run.ValidID(id) {
		t.Errorf("decisions about %s: %+v, want one, for run %q", key, all, id)
	}
}

func TestRequestMakesARunDue(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told := hints(t, b, "k")
	decider(t, b)
	request(t, b, 1, event.RunRequested{Key: "k", By: "kim", Spec: run.Spec{Context: "context://x", Platform: "linux/arm64"}})
	id := next(t, told)
	wantOneRun(t, b, "k", id)
	d := decisions(t, b, "k")[0]
	want := run.Cause{Kind: run.CauseManual, Event: "ev-k", Request: "k", By: "kim"}
	if d.Made.Kind != decide.Run || d.Run.State != run.Queued || !reflect.DeepEqual(d.Run.Cause, want) {
		t.Errorf("decision %q, run %s because of %+v, want %+v", d.Made.Kind, d.Run.State, d.Run.Cause, want)
	}
	if d.Run.Spec.Context != "context://x" || d.Run.Spec.Platform != "linux/arm64" || d.Run.Created.IsZero() {
		t.Errorf("run %+v: the request's spec is not in it", d.Run)
	}
}

func TestRepetitionNamesTheRepeatedRun(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told := hints(t, b, "k")
	decider(t, b)
	request(t, b, 1, event.RunRequested{Key: "k", By: "kim", RerunOf: "r00000000001"})
	wantOneRun(t, b, "k", next(t, told))
	want := run.Cause{Kind: run.CauseRerun, Event: "ev-k", Request: "k", By: "kim", RerunOf: "r00000000001"}
	if got := decisions(t, b, "k")[0].Run.Cause; !reflect.DeepEqual(got, want) {
		t.Errorf("cause %+v, want %+v", got, want)
	}
}

func TestRequestDeliveredTwiceMakesOneRun(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told, other := hints(t, b, "k"), hints(t, b, "other")
	decider(t, b)
	request(t, b, 1, event.RunRequested{Key: "k"})
	request(t, b, 2, event.RunRequested{Key: "k"})
	request(t, b, 1, event.RunRequested{Key: "other"})
	first, second := next(t, told), next(t, told)
	if first != second {
		t.Errorf("told of the runs %s and %s", first, second)
	}
	wantOneRun(t, b, "k", first)
	if id := next(t, other); id == first {
		t.Errorf("another request got the same run %s", id)
	}
}

func TestTwoDecidersMakeOneRun(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told := hints(t, b, "k")
	decider(t, b)
	decider(t, b)
	const deliveries = 40
	for n := range deliveries {
		request(t, b, n, event.RunRequested{Key: "k"})
	}
	first := next(t, told)
	for range deliveries - 1 {
		if id := next(t, told); id != first {
			t.Errorf("told of the runs %s and %s", first, id)
		}
	}
	wantOneRun(t, b, "k", first)
}

// A decider that has lost its position gets every request again, as after one that died before it
// could acknowledge them.
func TestDeciderThatLostItsPositionChangesNothing(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told := hints(t, b, "k")
	stop := decider(t, b)
	request(t, b, 1, event.RunRequested{Key: "k"})
	first := next(t, told)
	stop()
	if err := b.JetStream().DeleteConsumer(t.Context(), bus.StreamEvents, "triggers-requests"); err != nil {
		t.Fatal(err)
	}
	decider(t, b)
	if id := next(t, told); id != first {
		t.Errorf("told of the runs %s and %s", first, id)
	}
	wantOneRun(t, b, "k", first)
}

func TestRequestThatCannotBeReadDoesNotHoldUpTheNext(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	told := hints(t, b, "k")
	for _, bad := range []any{"no event", event.Event{ID: "x", Data: json.RawMessage(`"no request"`)}, event.Event{ID: "y"}} {
		if _, err := b.Publish(t.Context(), event.RequestSubject("bad"), "", bad); err != nil {
			t.Fatal(err)
		}
	}
	request(t, b, 1, event.RunRequested{Key: "k"})
	decider(t, b)
	wantOneRun(t, b, "k", next(t, told))
	if all := decisions(t, b, "bad"); len(all) != 0 {
		t.Errorf("decisions about nonsense: %+v", all)
	}
}
