package taskspec

import "testing"

func TestSyntaxErrorsNameThePlace(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{"steps:\n- cmd: img\n   timeout: 3\n", "3:4: not valid YAML: there can be no key here; the line is indented more than the key above it"},
		{"steps:\n- cmd: img\n  when: [a, b\n- cmd: img\n", "3:9: not valid YAML: a bracket that is opened here is never closed, or a comma is missing"},
		{"steps:\n- cmd: img a: b\n", `2:13: not valid YAML: ": " inside a text begins a map; put the whole text in quotes`},
		{"a: b\nsteps:\n- cmd: img\n timeout: 3\n", "4:2: not valid YAML: did not find expected key; check the indentation, quotes and brackets of this and the next lines"},
		{"steps:\n- cmd: 'img' x\n", "2:1: not valid YAML: did not find expected key; check the indentation, quotes and brackets of this and the next lines"},
		{"steps:\n- cmd: @img\n", "2:8: not valid YAML: a text cannot begin with this character; put it in quotes"},
		{"steps:\n- cmd: img\n  timeout 3\n  retries: 2\n", `3:3: not valid YAML: this is neither "key: value" nor a part of the line before; check its indentation and the ":"`},
		{"steps:\n- cmd: *x\n", "2:8: not valid YAML: unknown anchor 'x' referenced"},
		{"steps:\n- cmd: \"img\\.x\"\n", `2:12: not valid YAML: unknown escape; in double quotes write \\ for a backslash, or use single quotes`},
		{"steps:\n- cmd: \x01\n", "2:8: not valid YAML: control characters are not allowed"},
		{"a: 'b\nsteps: []\n", "1:4: not valid YAML: a quote that is opened here is never closed"},
		{"# one\n\n# two {{\nsteps:\n- cmd: 'img\n", "5:8: not valid YAML: a quote that is opened here is never closed"},
		{"version: v1.1.0\nalias:\n  values:\n    a: b\nsteps:\n- cmd: {{.Run.ID}} $a a: b\n", `6:24: not valid YAML: ": " inside a text begins a map; put the whole text in quotes`},
	} {
		_, _, err := Parse([]byte(tc.src), testOptions())
		if err == nil || err.Error() != "task.yaml:"+tc.want {
			t.Errorf("Parse(%q):\n got %v\nwant task.yaml:%s", tc.src, err, tc.want)
		}
	}
}
