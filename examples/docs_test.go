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
	sections := map[string]string{}
	for _, s := range strings.Split(readFile(t, "../docs/cli.md"), "\n## ")[1:] {
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

var commandLine = regexp.MustCompile(`(?m)^  ([a-z-]+) {2,}\S`)

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

// TestFrontPages holds the pages that newcomers read first to their length, their links to files that
// exist, and the task file that README shows to the one that is executed here.
func TestFrontPages(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^):#]+)\)`)
	for page, maxLines := range map[string]int{"README.md": 250, "ARCHITECTURE.md": 150, "CONTRIBUTING.md": 150} {
		text := readFile(t, "../"+page)
		if n := strings.Count(text, "\n"); n > maxLines {
			t.Errorf("%s: %d lines, at most %d", page, n, maxLines)
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat("../" + m[1]); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			}
		}
	}
	_, shown, _ := strings.Cut(readFile(t, "../README.md"), "```yaml\n")
	shown, _, _ = strings.Cut(shown, "```")
	if !strings.HasSuffix(readFile(t, "hello/acr-task.yaml"), shown) {
		t.Error("README.md shows another task file than examples/hello/acr-task.yaml")
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
