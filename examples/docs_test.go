package examples_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestReferenceIsComplete holds docs/cli.md against what the program says of itself: a section for
// every command, and every flag in it.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(b), "\n## ")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[strings.TrimPrefix(title, "kiln ")] = text
	}
	commands := commandsIn(help(t))
	if len(commands) < 10 {
		t.Fatalf("commands %q: the help is not understood", commands)
	}
	for _, c := range commands {
		text, ok := sections[c]
		if !ok {
			t.Errorf("docs/cli.md has no section %q", "## kiln "+c)
			continue
		}
		for _, flag := range flagsIn(help(t, c)) {
			if !strings.Contains(text, "`"+flag) && flag != "--help" {
				t.Errorf("docs/cli.md, section kiln %s: nothing about %s", c, flag)
			}
		}
		delete(sections, c)
	}
	for title := range sections {
		if title != "Exit codes" && title != "Finding the server" {
			t.Errorf("docs/cli.md describes %q, which the program does not have", title)
		}
	}
}

func help(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program("kiln"), append(command, "--help")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

var commandLine = regexp.MustCompile(`(?m)^  ([a-z]+) {2,}\S`)

func commandsIn(help string) []string {
	_, list, _ := strings.Cut(help, "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	var names []string
	for _, m := range commandLine.FindAllStringSubmatch(list, -1) {
		if m[1] != "help" {
			names = append(names, m[1])
		}
	}
	return names
}

var flagLine = regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[a-z-]+)`)

// flagsIn returns a command's own flags; those of all commands have a section for themselves.
func flagsIn(help string) []string {
	_, list, _ := strings.Cut(help, "\nFlags:\n")
	list, _, _ = strings.Cut(list, "\nGlobal Flags:\n")
	var names []string
	for _, m := range flagLine.FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	return names
}
