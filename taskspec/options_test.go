package taskspec

import (
	"errors"
	"strings"
	"testing"
)

func TestRedactedValuesNeverAppear(t *testing.T) {
	opt := testOptions()
	opt.Set = []string{"token=s3cr3t \"x\""}
	opt.Redact = []string{"s3cr3t \"x\""}
	for _, src := range []string{
		"steps:\n- cmd: img\n  when: ['{{.Values.token}}']\n",
		"steps:\n- cmd: img\n  timeout: '{{.Values.token}}'\n",
		"steps:\n- push: ['{{.Values.token}}/img']\n",
		"steps:\n- cmd: A{{.Values.token}}\n",
		"steps:\n- cmd: img > {{.Values.token}}\n",
		"steps:\n- cmd: img " + strings.Repeat("a", 10) + "{{.Values.token}}'\n",
		"steps:\n- cmd: img\n  env: [\"A='{{.Run.ID}}{{.Values.token | js}}\"]\n",
		"steps:\n- push: '{{.Values.token}}'\n",
		"steps:\n- cmd: img {{fail .Values.token}}\n",
		"steps:\n- cmd: img {{mustToDate \"2006\" .Values.token}}\n",
		"'{{.Values.token}}': 1\nsteps: 5\n",
	} {
		_, warns, err := Parse([]byte(src), opt)
		if err == nil {
			t.Errorf("Parse(%q) succeeded", src)
			continue
		}
		if text := err.Error() + warns.String(); strings.Contains(text, "s3c") {
			t.Errorf("Parse(%q) says %s", src, text)
		}
	}
}

func TestOptionsThatAreNotSet(t *testing.T) {
	for _, tc := range []struct{ name, src, want string }{
		{"alias source", "version: v1.1.0\nalias:\n  src: [a.yaml]\nsteps: []\n", `3:9: alias.src: "a.yaml": alias files cannot be read here; write the aliases under alias.values`},
		{"secrets", "secrets: [{id: a, keyvault: https://v/secrets/a}]\n", `1:11: secrets: secret "a" cannot be resolved: no secret provider is configured`},
	} {
		_, _, err := Parse([]byte(tc.src), Options{})
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: Parse = %v, want %s", tc.name, err, tc.want)
		}
	}
	task, _, err := Parse([]byte("version: v1.1.0\nsteps:\n- cmd: bash true\n- cmd: img x$Date-$Registry\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := task.Steps[0].Cmd.Image, DefaultImageAliases["bash"]; got != want {
		t.Errorf("image of bash = %q, want %q", got, want)
	}
	if got := task.Steps[1].Cmd.Args[0]; got != "x-" {
		t.Errorf("unset run variables render as %q, want x-", got)
	}
}

func TestOperatorsImageAliasesReplaceTheDefaults(t *testing.T) {
	opt := testOptions()
	opt.ImageAliases = map[string]string{"bash": "mirror.example.net/bash:1"}
	task, _, err := Parse([]byte("version: v1.1.0\nsteps:\n- cmd: bash true\n- cmd: curl x\n"), opt)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"mirror.example.net/bash:1", "curl"} {
		if got := task.Steps[i].Cmd.Image; got != want {
			t.Errorf("image %d = %q, want %q", i, got, want)
		}
	}
}

func TestErrorsAreReportedOneByOne(t *testing.T) {
	_, _, err := Parse([]byte("steps:\n- cmd: img\n  retries: x\n- push: y\n"), testOptions())
	var es Errors
	if !errors.As(err, &es) || len(es) != 2 {
		t.Fatalf("Parse = %v, want two errors", err)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Line != 3 || e.Col != 12 || e.Step != "acb_step_0" || e.Property != "retries" {
		t.Errorf("first error = %+v", e)
	}
}

func TestErrorsBeyondTheLimitAreCounted(t *testing.T) {
	_, _, err := Parse([]byte("steps:\n"+strings.Repeat("- push: x\n", maxErrors+7)), testOptions())
	var es Errors
	if !errors.As(err, &es) || len(es) != maxErrors+1 || !strings.Contains(err.Error(), "and 7 more errors") {
		t.Errorf("Parse returned %d errors", len(es))
	}
}
