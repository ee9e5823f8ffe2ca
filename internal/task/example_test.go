package task_test

import (
	"fmt"

	"kiln/internal/task"
)

// A file holds any number of tasks. What is not written has a default: this task is built for linux/amd64,
// may take an hour, and is rebuilt when its base image moves.
func ExampleDecode() {
	before, err := task.Decode("web.yaml", []byte(`
apiVersion: kiln/v1
kind: Task
name: web
context: https://git.example/team/web.git#main
step:
  build:
    images: ["web:{{.Run.ID}}", "web:latest"]
triggers:
  source:
    - events: [push, pull-request]
      paths: [src/, Dockerfile]
  timers:
    - name: nightly
      schedule: 0 2 * * mon-fri
      timeZone: Europe/Berlin
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	after := *before[0]
	after.Triggers.Timers = nil
	after.CPU = 2
	for _, change := range task.Diff(before[0], &after) {
		fmt.Println(change)
	}
	_, err = task.Decode("typo.yaml", []byte("apiVersion: kiln/v1\nkind: Task\nname: web\ntriggers:\n  timer: []\n"))
	fmt.Println(err)
	// Output:
	// + cpu: 2
	// - triggers.timers[nightly].name: nightly
	// - triggers.timers[nightly].schedule: 0 2 * * mon-fri
	// - triggers.timers[nightly].timeZone: Europe/Berlin
	// - triggers.timers[nightly].status: Enabled
	// - triggers.timers[nightly].catchUp: One
	// typo.yaml:5:3: triggers: unknown property "timer" (did you mean "timers"?)
}
