package worker

import (
	"fmt"
	"slices"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// Networks that a step may name without declaring them: docker's own.
const (
	netNone    = "none"
	netHost    = "host"
	netBridge  = "bridge"
	netDefault = "default"
)

// connect says where in the run's networks the container of a step is.
func (a *attempt) connect(s *taskspec.Step, c *solve.Container) {
	c.Network, c.NetworkName = networkOf(s)
	if c.Network != solve.NetworkRun {
		return
	}
	for _, other := range a.task.Steps {
		if kind, name := networkOf(other); other.Detach && kind == c.Network && name == c.NetworkName {
			c.Peers = append(c.Peers, other.ID)
		}
	}
}

// networkOf returns the network of a step. On docker's default one containers do not find each other by
// name; here they do not at all.
func networkOf(s *taskspec.Step) (solve.Network, string) {
	switch s.Network {
	case netNone:
		return solve.NetworkNone, ""
	case netBridge, netDefault:
		return solve.NetworkAlone, ""
	}
	return solve.NetworkRun, s.Network
}

// checkNetworks refuses networks that nobody has declared, and warns of what has no effect.
func checkNetworks(t *taskspec.Task, file string) (taskspec.Warnings, taskspec.Errors) {
	var warnings taskspec.Warnings
	var errs taskspec.Errors
	for _, n := range t.Networks {
		warn := func(format string, args ...any) {
			warnings = append(warnings, &taskspec.Error{File: file, Property: "networks",
				Message: fmt.Sprintf("network %q: ", n.Name) + fmt.Sprintf(format, args...)})
		}
		if n.SkipCreation && !slices.Contains([]string{netNone, netBridge, netDefault}, n.Name) {
			warn("skipCreation has no effect on this worker: every network is made for the run, and removed with it")
		}
		if n.Driver != "" && n.Driver != netBridge {
			warn("driver %q has no effect on this worker: every network is a bridge of the run's own", n.Driver)
		}
		if n.IPv6 {
			warn("ipv6 has no effect on this worker: containers have IPv4 addresses")
		}
	}
	known := []string{"", netNone, netHost, netBridge, netDefault}
	for _, n := range t.Networks {
		known = append(known, n.Name)
	}
	for _, s := range t.Steps {
		at := &taskspec.Error{File: file, Line: s.Line, Col: 1, Step: s.ID}
		if s.Kind == taskspec.KindCmd && !slices.Contains(known, s.Network) {
			at.Property, at.Message = "network", fmt.Sprintf("network %q is not declared: add it to the task's networks", s.Network)
			errs = append(errs, at)
		}
		if len(s.Ports) > 0 {
			published := *at
			published.Property = "ports"
			published.Message = "nothing is published on the worker's host; other steps of the run reach every port of the container by the step's ID"
			warnings = append(warnings, &published)
		}
	}
	return warnings, errs
}
