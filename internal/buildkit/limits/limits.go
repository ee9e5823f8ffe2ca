// Package limits carries the limits of a container, and what else is to be different about it, from the
// client, whose API has no words for that, to kiln's own build daemon.
//
// They travel as two variables of the container's environment, which the daemon takes out before it
// starts the container. Another daemon would hand the variables on to the container and do nothing, so
// a client sends them only to a daemon that it knows to be kiln's own.
//
// Who writes a Dockerfile can set the variables, too. So nothing of what they say may give a container more
// than it has without them.
package limits

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Network is what kiln's own daemon calls the way in which it connects containers. No other daemon does,
// so a client knows by it with whom it talks.
const Network = "kiln"

// variable is the name under which limits travel.
const variable = "KILN_CONTAINER_LIMITS"

// Period is the time over which the use of processors is measured, in microseconds.
const Period = 100_000

// Limits bound what a container may use. The zero value limits nothing.
type Limits struct {
	CPUs   float64 // processors' time per time; 0 is no limit
	Memory int64   // bytes; 0 is no limit
}

// Quota returns the microseconds of processor time in a Period; 0 is no limit.
func (l Limits) Quota() int64 {
	if l.CPUs <= 0 {
		return 0
	}
	return max(1000, int64(math.Round(l.CPUs*Period))) // the kernel takes no less
}

// Put returns env with l in it, and without what else may stand there in its place.
func Put(env []string, l Limits) []string {
	_, env = Take(env)
	if l == (Limits{}) {
		return env
	}
	return append(env, fmt.Sprintf("%s=%d %d", variable, l.Quota(), l.Memory))
}

// Take returns the processor quota and the memory that env limits a container to, and env without the
// variable. What cannot be read limits nothing.
func Take(env []string) (Taken, []string) {
	var t Taken
	rest := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		value, ok := strings.CutPrefix(kv, variable+"=")
		if !ok {
			return false
		}
		quota, memory, _ := strings.Cut(value, " ")
		q, err1 := strconv.ParseInt(quota, 10, 64)
		m, err2 := strconv.ParseInt(memory, 10, 64)
		if err1 == nil && err2 == nil && q >= 0 && m >= 0 {
			t = Taken{Quota: q, Memory: m}
		}
		return true
	})
	return t, rest
}

// Taken are limits as the daemon applies them; zero is no limit.
type Taken struct {
	Quota  int64 // microseconds of processor time in a Period
	Memory int64 // bytes
}
