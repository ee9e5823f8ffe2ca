//go:build soak

package main

import "testing"

// TestSoakProcessesAreKilled is the long form of TestProcessesAreKilled.
func TestSoakProcessesAreKilled(t *testing.T) { killProcesses(t, 200) }
