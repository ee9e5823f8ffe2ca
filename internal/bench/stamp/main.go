// Command stamp prints the time, in nanoseconds since 1970, one line after the other: stamp LINES
// INTERVAL. It runs in a container, and tells a follower of the container's log when each line was
// printed.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: stamp LINES INTERVAL")
		os.Exit(2)
	}
	lines, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	interval, err := time.ParseDuration(os.Args[2])
	if err != nil || interval <= 0 {
		fmt.Fprintf(os.Stderr, "interval %q: want a duration such as 50ms\n", os.Args[2])
		os.Exit(2)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for range lines {
		<-tick.C
		fmt.Printf("stamp %d\n", time.Now().UnixNano())
	}
}
