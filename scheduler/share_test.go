package scheduler

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"unsafe"

	"kiln/internal/run"
)

// Runs that one fact has made due hold what they have in common once, and each is still what it was.
func TestRunsShareWhatTheyHaveInCommon(t *testing.T) {
	stored := func(task string) []byte {
		return fmt.Appendf(nil, `{"id":"r-%s","task":%q,"status":"Queued","cause":{"kind":"base-image","reason":"base moved","event":"e1",`+
			`"moved":[{"ref":"docker.io/library/base:1","to":"sha256:1"}]},"spec":{"taskFile":{"name":"task.yaml","content":"c3RlcHM6"},`+
			`"pins":{"docker.io/library/base:1":"sha256:1"},"pool":%q}}`, task, task, task)
	}
	c := newCore(0)
	for _, task := range []string{"a", "b"} {
		var r run.Run
		if err := json.Unmarshal(stored(task), &r); err != nil {
			t.Fatal(err)
		}
		c.adopt(r, 1, t0)
	}
	a, b := c.runs["r-a"].run, c.runs["r-b"].run
	var want run.Run
	if err := json.Unmarshal(stored("b"), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(b, want) {
		t.Errorf("the run became another:\n%+v\nwant\n%+v", b, want)
	}
	if unsafe.StringData(a.Cause.Reason) != unsafe.StringData(b.Cause.Reason) || &a.Cause.Moved[0] != &b.Cause.Moved[0] ||
		&a.Spec.TaskFile.Content[0] != &b.Spec.TaskFile.Content[0] || reflect.ValueOf(a.Spec.Pins).Pointer() != reflect.ValueOf(b.Spec.Pins).Pointer() {
		t.Error("what both have in common is there twice")
	}
}
