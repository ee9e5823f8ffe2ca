// Package metrics shows what a process of kiln does in the format of Prometheus.
//
// What happens is counted where it passes, in this process since its start: decisions, the ends of runs and
// steps, requests to the registry. What is there (queues, workers, streams) is read when somebody asks, at most
// once a second and for no longer than two, and the last answer is given again meanwhile; of a source that does
// not answer in time there are no values, and kiln_source_up says so. A process has values only of the components
// that it has.
//
// Values of labels come from lists that are fixed here, but for the names of pools, of which no more than a bound
// are told apart. Names of repositories, tasks, runs and people are in none of them.
package metrics

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kiln/internal/run"
	"kiln/triggers/decide"
)

// maxScrapes is how many scrapes are answered at once.
const maxScrapes = 4

// Metrics are the metrics of one process. They are safe for concurrent use.
type Metrics struct {
	registry  *prometheus.Registry
	decisions *prometheus.CounterVec
	runs      *prometheus.CounterVec
	runTimes  *prometheus.HistogramVec
	waits     *prometheus.HistogramVec
	stepTimes *prometheus.HistogramVec
	requests  *prometheus.CounterVec
	received  *prometheus.CounterVec
	sent      *prometheus.CounterVec
	handler   http.Handler
}

// New returns the metrics of a process that runs a version of kiln.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewPedanticRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m.decisions = counter("kiln_decisions_total", "Decisions that were stored, by kind.", "kind")
	m.runs = counter("kiln_runs_total", "Runs that have ended, by outcome and lane.", "outcome", "lane")
	m.runTimes = histogram("kiln_run_duration_seconds", "From the beginning of runs to their end, by outcome.", long, "outcome")
	m.waits = histogram("kiln_run_wait_seconds", "From the creation of runs to their beginning, by lane.", long, "lane")
	m.stepTimes = histogram("kiln_step_duration_seconds", "How long steps took, by type and outcome.", long, "type", "outcome")
	m.requests = counter("kiln_registry_requests_total", "Requests to the registry, by method, kind of path and class of status.", "method", "route", "status")
	m.received = counter("kiln_registry_received_bytes_total", "Bytes of the bodies of requests to the registry.", "route")
	m.sent = counter("kiln_registry_sent_bytes_total", "Bytes of the bodies of the registry's answers.", "route")
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kiln_build_info", Help: "1; the labels say which program this is.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()}}, func() float64 { return 1 })
	m.registry.MustRegister(m.decisions, m.runs, m.runTimes, m.waits, m.stepTimes, m.requests, m.received, m.sent, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, k := range []decide.Kind{decide.Run, decide.Coalesced, decide.Duplicate, decide.Unchanged, decide.Disabled, decide.Filtered,
		decide.Pinned, decide.Cycle, decide.Blocked} {
		m.decisions.WithLabelValues(string(k)) // zero is a value, too
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
	return m
}

// long are the bounds of durations in seconds: from what is taken from a cache to the usual limit of a run.
var long = []float64{0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200}

// Decided counts a decision.
func (m *Metrics) Decided(kind decide.Kind) { m.decisions.WithLabelValues(string(kind)).Inc() }

// Ended counts a run that has ended, and its steps.
func (m *Metrics) Ended(r run.Run) {
	outcome := string(r.State)
	m.runs.WithLabelValues(outcome, laneName(r.Lane)).Inc()
	if !r.Started.IsZero() {
		m.waits.WithLabelValues(laneName(r.Lane)).Observe(r.Started.Sub(r.Created).Seconds())
		m.runTimes.WithLabelValues(outcome).Observe(r.Finished.Sub(r.Started).Seconds())
	}
	for _, s := range r.Steps {
		if !s.Started.IsZero() && !s.Finished.IsZero() {
			m.stepTimes.WithLabelValues(known(s.Kind, stepKinds), string(s.State)).Observe(s.Finished.Sub(s.Started).Seconds())
		}
	}
}

var (
	stepKinds = []string{"build", "cmd", "push"}
	lanes     = []string{string(decide.ClassManual), string(decide.ClassCommit), string(decide.ClassPull), string(decide.ClassBase),
		string(decide.ClassTimer), string(decide.LaneReconcile)}
)

// laneName is the lane that a run has waited in: runs that name none are requests.
func laneName(lane string) string {
	if lane == "" {
		return string(decide.ClassManual)
	}
	return known(lane, lanes)
}

// other stands for all values of a label that are not told apart.
const other = "other"

// known returns s if it is one of list.
func known(s string, list []string) string {
	for _, k := range list {
		if s == k {
			return k
		}
	}
	return other
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler { return m.handler }
