package event

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// Subject roots. Every token after the root is an ID or a hash, never a user's text.
const (
	SubjectEvents    = "kiln.event.>"
	SubjectDecisions = "kiln.decision.>"
	SubjectWork      = "kiln.work.*"
	SubjectReports   = "kiln.report.*"
	SubjectLogs      = "kiln.log.*.*"
	SubjectTimers    = "kiln.timer.>"
	// SubjectIntake carries batches of deliveries that have been taken in and are to become events.
	SubjectIntake = "kiln.intake"
)

// MovedSubject carries a plain NATS hint: the batches on SubjectIntake, up to this stream sequence, are in
// the events now.
const MovedSubject = "kiln.moved"

// QuickTask stands for the task UID on the subjects of runs that belong to no task.
const QuickTask = "quick"

// Hash makes a subject token of any text: 128 bits of its SHA-256, in hex.
func Hash(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:16])
}

// RequestSubject is where a request with that idempotency key is published, create-only: the subject
// itself is the guard against a second one.
func RequestSubject(key string) string { return "kiln.event.run.requested." + Hash(key) }

// RequestFilter matches every request.
const RequestFilter = "kiln.event.run.requested.*"

// CancelSubject is where the wish to cancel a run is published.
func CancelSubject(runID string) string { return "kiln.event.run.cancel." + runID }

// CancelFilter matches every wish to cancel.
const CancelFilter = "kiln.event.run.cancel.*"

// ApproveSubject is where the approval of a run is published.
func ApproveSubject(runID string) string { return "kiln.event.run.approved." + runID }

// ApproveFilter matches every approval.
const ApproveFilter = "kiln.event.run.approved.*"

// RunSubject is where a change of a run is published: of TypeRunQueued, TypeRunStarted, TypeRunFinished.
func RunSubject(typ, runID string) string { return "kiln.event." + typ + "." + runID }

// FinishedFilter matches every end of a run.
const FinishedFilter = "kiln.event.run.finished.*"

// ImageFilter matches every event of an image in the co-located registry.
const ImageFilter = "kiln.event.image.>"

// ImagePushedFilter matches every push of an image to the co-located registry.
const ImagePushedFilter = "kiln.event.image.pushed.*"

// ImageSubject is where an image event of a repository is published.
func ImageSubject(typ, repository string) string {
	return "kiln.event." + typ + "." + Hash(repository)
}

// DecisionSubject is the track's subject. For a quick run the track is its request.
func DecisionSubject(taskUID, track string) string {
	return "kiln.decision." + taskUID + "." + Hash(track)
}

// DecisionFilter matches every decision about a task.
func DecisionFilter(taskUID string) string { return "kiln.decision." + taskUID + ".*" }

// DecidedTask is the UID of the task that a decision's subject is about.
func DecidedTask(subject string) string {
	uid, _, _ := strings.Cut(strings.TrimPrefix(subject, "kiln.decision."), ".")
	return uid
}

// NoteSubject is where decisions about a task are noted that change no track's state.
func NoteSubject(taskUID string) string { return "kiln.decision." + taskUID + ".notes" }

// AlarmSubject is where the clock puts its message that a track is to be looked at: a timer is due, or a
// quiet window has passed.
func AlarmSubject(taskUID, track string) string {
	return "kiln.timer.fired." + taskUID + "." + Hash(track)
}

// AlarmFilter matches every alarm that went off.
const AlarmFilter = "kiln.timer.fired.>"

// ScheduleSubject is where the next alarm of a track is set.
func ScheduleSubject(taskUID, track string) string {
	return "kiln.timer.schedule." + taskUID + "." + Hash(track)
}

// ScheduleFilter matches every alarm that is set.
const ScheduleFilter = "kiln.timer.schedule.>"

// DecidedSubject carries a plain NATS hint, after the decision of a request is stored: its run ID.
func DecidedSubject(key string) string { return "kiln.decided." + Hash(key) }

// WorkSubject is a worker's queue of assignments.
func WorkSubject(instance string) string { return "kiln.work." + instance }

// ControlSubject carries plain NATS messages to a worker.
func ControlSubject(instance string) string { return "kiln.control." + instance }

// ReportSubject carries the reports of a run.
func ReportSubject(runID string) string { return "kiln.report." + runID }

// LogSubject carries the log of one step, by its index; index -1 is the run itself.
func LogSubject(runID string, step int) string {
	if step < 0 {
		return "kiln.log." + runID + ".run"
	}
	return "kiln.log." + runID + "." + strconv.Itoa(step)
}

// LogFilter matches the whole log of a run.
func LogFilter(runID string) string { return "kiln.log." + runID + ".*" }

// LeaseKey is the key of an attempt's lease, and the identity of its assignment.
func LeaseKey(runID string, attempt int) string { return runID + "." + strconv.Itoa(attempt) }

// ReportID is the message ID of a report.
func ReportID(r Report) string {
	return r.Run + "." + strconv.Itoa(r.Attempt) + "." + strconv.Itoa(r.N)
}

// Questions that one process puts to another.
const (
	AskQueue     = "kiln.ask.queue"     // what queued runs wait for; of the scheduler
	AskReconcile = "kiln.ask.reconcile" // of triggers
	AskReplay    = "kiln.ask.replay"
	AskFollowed  = "kiln.ask.followed" // the images that tasks are built on
	AskPurge     = "kiln.ask.purge"    // for a run; of the registry
)

// AskCache is the question to a worker what the build cache of its daemon holds.
func AskCache(instance string) string { return "kiln.ask.cache." + instance }

// AskPruneCache is the wish that a worker prunes it.
func AskPruneCache(instance string) string { return "kiln.ask.prune." + instance }
