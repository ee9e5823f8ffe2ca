package taskspec

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestSplitWordsAgreesWithShell compares with the shell of the machine, for commands it would not act on.
func TestSplitWordsAgreesWithShell(t *testing.T) {
	for _, s := range []string{
		`a b  c`,
		`'a b' "c d" e\ f`,
		`a'b'"c"d`,
		`'' "" a`,
		`"a\"b" "a\\b" "a\$b" "a\` + "`" + `b" "a\nb" 'a\nb' a\nb`,
		"a \\\n b",
		"a\\\nb",
		"\"a\\\nb\"",
		"'a\nb' \"c\nd\"",
		"a # b c",
		"a#b '#' \"#\"",
		`a="b c" --x='y z'`,
		`$unset_variable_x a "$unset_variable_x" b${unset_variable_x}c`,
		`cost$ a$ "$" '$x'`,
		"\t a \t b ",
		`\'a\' \"b\"`,
		`~x a~ {a,b} ! a!b`,
		"a\n",
		"\na",
		`é "ü ö" 'ß'`,
	} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "set -- "+strings.TrimSpace(s)+"\nfor a in \"$@\"; do printf '%s\\0' \"$a\"; done").Output()
		if err != nil {
			t.Fatalf("sh %q: %v", s, err)
		}
		var want []string
		if len(out) > 0 {
			want = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		}
		got, err := splitWords(s)
		if err != nil || !slices.Equal(got.list, want) {
			t.Errorf("splitWords(%q) = %q, %v, want %q", s, got.list, err, want)
		}
	}
}

func TestOrderIsThatOfTheFileWhereTheGraphAllows(t *testing.T) {
	task, _, err := Parse([]byte("steps:\n"+
		"- {id: a, cmd: img, when: [d]}\n"+
		"- {id: b, cmd: img, when: [\"-\"]}\n"+
		"- {id: c, cmd: img, when: [\"-\"]}\n"+
		"- {id: d, cmd: img, when: [b]}\n"), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range task.Order() {
		got = append(got, s.ID)
	}
	if want := []string{"b", "c", "d", "a"}; !slices.Equal(got, want) {
		t.Errorf("Order() = %v, want %v", got, want)
	}
	if s := task.Step("d"); s == nil || s.ID != "d" {
		t.Errorf("Step(d) = %v", s)
	}
	if s := task.Step("x"); s != nil {
		t.Errorf("Step(x) = %v, want nil", s)
	}
}

func TestPlaceInFlowListOfManySteps(t *testing.T) {
	src := "steps: [" + strings.Repeat("{cmd: img}, ", 900) + "{cmd: img, retries: -1}]"
	_, _, err := Parse([]byte(src), testOptions())
	want := "task.yaml:1:" + "10829" + `: step "acb_step_900": retries: step must specify retries >= 0`
	if err == nil || err.Error() != want {
		t.Errorf("Parse = %v, want %s", err, want)
	}
}
