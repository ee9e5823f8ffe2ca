package run

// State is the state of a run, in ACR's words.
type State string

// States of a run. Queued, Started and Running lead to exactly one of the others.
const (
	Queued    State = "Queued"    // decided, waits for a worker
	Started   State = "Started"   // assigned to a worker
	Running   State = "Running"   // the worker has begun
	Succeeded State = "Succeeded" // every step succeeded
	Failed    State = "Failed"    // a step failed: the user's result
	Canceled  State = "Canceled"
	Error     State = "Error" // kiln could not execute it
	Timeout   State = "Timeout"
)

// Final reports whether s is an end.
func (s State) Final() bool {
	switch s {
	case Succeeded, Failed, Canceled, Error, Timeout:
		return true
	}
	return false
}

var next = map[State][]State{
	"":      {Queued, Started},
	Queued:  {Started, Canceled, Error, Timeout},
	Started: {Queued, Running, Succeeded, Failed, Canceled, Error, Timeout},
	Running: {Queued, Succeeded, Failed, Canceled, Error, Timeout},
}

// CanBecome reports whether a run may go from s to t. Started and Running return to Queued when an
// attempt is lost; a final state is never left.
func (s State) CanBecome(t State) bool {
	for _, n := range next[s] {
		if n == t {
			return true
		}
	}
	return false
}
