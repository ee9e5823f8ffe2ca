package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// TestDocumentationShowsTheMessages compares the mistakes in docs/task-language.md with those of the
// script that executes kiln check.
func TestDocumentationShowsTheMessages(t *testing.T) {
	t.Parallel()
	ar, err := txtar.ParseFile("testdata/script/check.txtar")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/task-language.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "## Ten mistakes\n")
	if !ok {
		t.Fatal("the documentation has no such section")
	}
	shown := 0
	for _, f := range ar.Files {
		if name, ok := strings.CutSuffix(f.Name, ".txt"); ok && name != "rendered" {
			shown++
			if !strings.Contains(section, "```text\n"+string(f.Data)+"```") {
				t.Errorf("the documentation does not show what kiln says of %s.yaml:\n%s", name, f.Data)
			}
		}
	}
	if shown != 10 {
		t.Errorf("%d mistakes, want 10", shown)
	}
}
