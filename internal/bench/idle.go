package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	settle    = 80 * time.Second // after the start, and after builds: a server at rest gives memory back for a minute
	watch     = 30 * time.Second
	tick      = 10 * time.Millisecond // of the kernel's processor times as /proc tells them
	someBuild = 5
)

// idle measures a server with its own build daemon that has nothing to do: resident memory summed up
// over its processes, shared pages counted in each, and the processor time of half a minute.
func idle(ctx context.Context, l *lab) ([]result, error) {
	k, err := l.startKiln(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	fresh, spent, err := watchTree(ctx, k.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	s, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	for range someBuild {
		if _, err := s.build(ctx); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	used, spentUsed, err := watchTree(ctx, k.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	after := fmt.Sprintf("after %d builds", someBuild)
	return []result{
		{What: "RSS of all processes", Unit: "MB", Value: fresh.rss, Must: 150, Note: fresh.String()},
		{What: "processor time in 30 s", Unit: "s", Value: max(spent.Seconds(), 0.001), Must: 0.5},
		{What: "RSS of all processes " + after, Unit: "MB", Value: used.rss, Must: 150, Note: used.String()},
		{What: "processor time in 30 s " + after, Unit: "s", Value: max(spentUsed.Seconds(), 0.001), Must: 0.5},
	}, nil
}

// watchTree observes a process and its children for a while.
func watchTree(ctx context.Context, pid int) (tree, time.Duration, error) {
	before, err := readTree(pid)
	if err != nil {
		return tree{}, 0, err
	}
	if err := pause(ctx, watch); err != nil {
		return tree{}, 0, err
	}
	after, err := readTree(pid)
	return after, after.cpu - before.cpu, err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// A tree is what a process and its descendants use.
type tree struct {
	rss, pss  float64 // MB
	cpu       time.Duration
	processes []string
}

func (t tree) String() string {
	return fmt.Sprintf("PSS %.0f MB; RSS of %s", t.pss, strings.Join(t.processes, ", "))
}

// readTree reads what the kernel tells about a process and its descendants. The processor time includes
// that of children that have ended.
func readTree(root int) (tree, error) {
	parents, err := readParents()
	if err != nil {
		return tree{}, err
	}
	var t tree
	for pid := range parents {
		if !descends(pid, root, parents) {
			continue
		}
		if err := t.add(pid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return t, err
		}
	}
	if len(t.processes) == 0 {
		return t, fmt.Errorf("process %d has ended", root)
	}
	return t, nil
}

// descends reports whether pid is root or a descendant of it.
func descends(pid, root int, parents map[int]int) bool {
	for ; pid > 1; pid = parents[pid] {
		if pid == root {
			return true
		}
	}
	return false
}

// readParents returns the parent of every process.
func readParents() (map[int]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	parents := map[int]int{}
	for _, name := range names {
		st, err := readStat(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parents[st.pid] = st.parent
	}
	return parents, nil
}

// errGone is the error of reading about a process that ends meanwhile.
var errGone = errors.New("process is gone")

// A stat is the part of /proc/PID/stat that is used here.
type stat struct {
	pid, parent int
	name        string
	cpu         time.Duration
}

func readStat(name string) (stat, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		if os.IsNotExist(err) {
			return stat{}, err
		}
		return stat{}, fmt.Errorf("%w: %w", errGone, err)
	}
	s, err := parseStat(string(b))
	if err != nil {
		return s, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// parseStat parses a line as in /proc/PID/stat; proc_pid_stat(5) has the fields.
func parseStat(line string) (stat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("%q: no name in parentheses", line)
	}
	s := stat{name: line[open+1 : end]}
	fields := strings.Fields(line[end+1:]) // the third field is the first here
	const ppid, utime, cstime = 4 - 3, 14 - 3, 17 - 3
	if len(fields) <= cstime {
		return s, fmt.Errorf("%q: too few fields", line)
	}
	var err error
	if s.pid, err = strconv.Atoi(strings.TrimSpace(line[:open])); err != nil {
		return s, err
	}
	if s.parent, err = strconv.Atoi(fields[ppid]); err != nil {
		return s, err
	}
	for _, f := range fields[utime : cstime+1] { // own and ended children's, user and system
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return s, err
		}
		s.cpu += time.Duration(n) * tick
	}
	return s, nil
}

// add adds one process.
func (t *tree) add(pid int) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	st, err := readStat(dir + "stat")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "smaps_rollup")
	if err != nil {
		return err
	}
	rss, pss := 0.0, 0.0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return fmt.Errorf("%ssmaps_rollup: %w", dir, err)
		}
		switch f[0] {
		case "Rss:":
			rss = kb * 1024 / 1e6
		case "Pss:":
			pss = kb * 1024 / 1e6
		}
	}
	t.rss, t.pss, t.cpu = t.rss+rss, t.pss+pss, t.cpu+st.cpu
	t.processes = append(t.processes, fmt.Sprintf("%s %.0f MB", st.name, rss))
	return nil
}
