package metrics

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kiln/internal/bus"
	"kiln/scheduler"
)

const (
	within   = 2 * time.Second // that a source may take to answer
	fresh    = time.Second     // for which an answer is given again
	maxPools = 32              // that are told apart
)

// ErrElsewhere is returned by a source that another process has at the time: there are no values of it here.
var ErrElsewhere = errors.New("another process has it")

// Sources are where the state of a process is read. Those that it does not have are nil.
type Sources struct {
	Queue   func(context.Context) (scheduler.Stats, error)
	Streams func(context.Context) ([]bus.StreamStats, error)
}

// Watch adds the metrics of what is there. It is called once at most.
func (m *Metrics) Watch(s Sources) { m.registry.MustRegister(&state{sources: s}) }

// describe returns what a metric is called, and by what its values are told apart.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descUp         = describe("kiln_source_up", "1 if the values that come from a source could be read, else 0.", "source")
	descWaiting    = describe("kiln_queue_runs", "Runs that wait for their turn, by pool and lane.", "pool", "lane")
	descOldest     = describe("kiln_queue_oldest_seconds", "Age of the oldest run that waits, by pool and lane; 0 if none does.", "pool", "lane")
	descUnapproved = describe("kiln_queue_unapproved_runs", "Runs that wait for somebody's approval.")
	descAssigned   = describe("kiln_runs_assigned", "Runs that workers have.")
	descWorkers    = describe("kiln_workers", "Workers, by pool and state: idle without a run, busy with some, full with as many as they take, drained if they take no more.", "pool", "state")
	descSlots      = describe("kiln_worker_slots", "Runs that the workers of a pool take together.", "pool")
	descUsed       = describe("kiln_worker_slots_used", "Runs that the workers of a pool have.", "pool")
	descMessages   = describe("kiln_stream_messages", "Messages in a stream of JetStream. Every process that is connected to it tells the same.", "stream")
	descBytes      = describe("kiln_stream_bytes", "Bytes in a stream of JetStream. Every process that is connected to it tells the same.", "stream")
	descPending    = describe("kiln_consumer_pending_messages", "Messages that a reader of a stream has not been given yet.", "stream", "consumer")
	descUnsettled  = describe("kiln_consumer_unsettled_messages", "Messages that a reader of a stream has in hand.", "stream", "consumer")
)

// A state is a collector of what is there.
type state struct {
	sources Sources

	mu   sync.Mutex
	read time.Time
	last []prometheus.Metric
}

// Describe implements prometheus.Collector.
func (s *state) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descWaiting, descOldest, descUnapproved, descAssigned, descWorkers, descSlots, descUsed,
		descMessages, descBytes, descPending, descUnsettled} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(to chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) > fresh {
		s.last = s.collect()
		s.read = time.Now()
	}
	for _, m := range s.last {
		to <- m
	}
}

// A sheet is metrics in the making.
type sheet []prometheus.Metric

func (s *sheet) set(d *prometheus.Desc, v float64, labels ...string) {
	*s = append(*s, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
}

// collect reads the sources, all at once.
func (s *state) collect() []prometheus.Metric {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var all sheet
	var queue scheduler.Stats
	var streams []bus.StreamStats
	var queueErr, streamsErr error
	var g sync.WaitGroup
	if s.sources.Queue != nil {
		g.Go(func() { queue, queueErr = s.sources.Queue(ctx) })
	}
	if s.sources.Streams != nil {
		g.Go(func() { streams, streamsErr = s.sources.Streams(ctx) })
	}
	g.Wait()
	if s.sources.Queue != nil && !errors.Is(queueErr, ErrElsewhere) {
		all.set(descUp, up(queueErr), "queue")
		if queueErr == nil {
			all.queue(queue, time.Now())
		}
	}
	if s.sources.Streams != nil {
		all.set(descUp, up(streamsErr), "streams")
		if streamsErr == nil {
			all.streams(streams)
		}
	}
	return all
}

func up(err error) float64 {
	if err != nil {
		return 0
	}
	return 1
}

// names tells apart the first names that it is asked for.
type names map[string]bool

func (n names) of(name string) string {
	if !n[name] && len(n) == maxPools {
		return other
	}
	n[name] = true
	return name
}

// queue adds what the scheduler has in hand. Pools that have workers are told apart first.
func (s *sheet) queue(st scheduler.Stats, now time.Time) {
	type lane struct{ pool, name string }
	pools := names{}
	workers := map[string]scheduler.PoolStats{}
	for _, p := range st.Pools {
		name := pools.of(p.Pool)
		sum := workers[name]
		sum.Idle, sum.Busy, sum.Full, sum.Drained = sum.Idle+p.Idle, sum.Busy+p.Busy, sum.Full+p.Full, sum.Drained+p.Drained
		sum.Slots, sum.Used = sum.Slots+p.Slots, sum.Used+p.Used
		workers[name] = sum
	}
	waiting, oldest := map[lane]int{}, map[lane]float64{}
	for _, l := range st.Lanes {
		at := lane{pools.of(l.Pool), l.Lane}
		waiting[at] += l.Waiting
		if !l.Oldest.IsZero() {
			oldest[at] = max(oldest[at], now.Sub(l.Oldest).Seconds())
		}
	}
	for at, n := range waiting {
		s.set(descWaiting, float64(n), at.pool, at.name)
		s.set(descOldest, oldest[at], at.pool, at.name)
	}
	for name, p := range workers {
		s.set(descWorkers, float64(p.Idle), name, "idle")
		s.set(descWorkers, float64(p.Busy), name, "busy")
		s.set(descWorkers, float64(p.Full), name, "full")
		s.set(descWorkers, float64(p.Drained), name, "drained")
		s.set(descSlots, float64(p.Slots), name)
		s.set(descUsed, float64(p.Used), name)
	}
	s.set(descUnapproved, float64(st.Unapproved))
	s.set(descAssigned, float64(st.Assigned))
}

// consumers are the readers that are told apart. Those of which there is one for each worker or target are taken
// together.
var consumers = []string{"announcer", "notify", "notify-statuses", "scheduler", "scheduler-approvals", "triggers-alarms", "triggers-finished",
	"triggers-git", "triggers-images", "triggers-requests", "webhook"}

func consumerName(name string) string {
	if k := known(name, consumers); k != other {
		return k
	}
	switch {
	case strings.HasPrefix(name, "worker-"):
		return "workers"
	case strings.HasPrefix(name, "notify-"):
		return "notify-targets"
	}
	return other
}

// streams adds what is in streams and how far their readers are.
func (s *sheet) streams(list []bus.StreamStats) {
	for _, st := range list {
		s.set(descMessages, float64(st.Messages), st.Stream)
		s.set(descBytes, float64(st.Bytes), st.Stream)
		pending, unsettled := map[string]uint64{}, map[string]int{}
		for _, c := range st.Consumers {
			name := consumerName(c.Name)
			pending[name] += c.Pending
			unsettled[name] += c.Unsettled
		}
		for name, n := range pending {
			s.set(descPending, float64(n), st.Stream, name)
			s.set(descUnsettled, float64(unsettled[name]), st.Stream, name)
		}
	}
}
