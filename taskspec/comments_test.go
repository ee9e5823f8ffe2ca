package taskspec

import (
	"strings"
	"testing"
)

func TestBlockScalarLines(t *testing.T) {
	src := strings.Join([]string{
		"a: |", " # in", "", " x", "# out", "b:", " - >-", "   # in", "    # in", " # out", " - c: |2 # note", "      # in", "     # in", "    # out",
		"d: &x |", "  # in", "e: !!str |+", "  # in", "f: text >", "# out", "- - |", "   # in", "  # out",
	}, "\n")
	var b blockScalar
	for line := range strings.Lines(src) {
		in := b.next(line)
		if want := strings.Contains(line, "# in"); strings.Contains(line, "# ") && in != want && !strings.Contains(line, "# note") {
			t.Errorf("next(%q) = %v, want %v", line, in, want)
		}
	}
}
