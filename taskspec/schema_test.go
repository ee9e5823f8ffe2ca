package taskspec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"gopkg.in/yaml.v3"
)

// TestSchemaAgreesWithTheParser holds every golden file and example against the schema, as it is written
// and rendered: it is valid unless it has an error or a property that is not known.
func TestSchemaAgreesWithTheParser(t *testing.T) {
	v := newValidator(t)
	files, _ := filepath.Glob("testdata/*.txtar")
	if len(files) < 100 {
		t.Fatalf("%d golden files", len(files))
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		opt, src := goldenInput(t, ar)
		_, warns, err := Parse(src, opt)
		if err != nil {
			continue
		}
		unknown := strings.Contains(warns.String(), "unknown property")
		rendered, err := Render(src, opt)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(src), rendered} {
			got := v.validate(text)
			if got != nil && !unknown && !strings.HasPrefix(got.Error(), "not YAML") {
				t.Errorf("%s is not valid by the schema: %v", file, got)
			}
			if got == nil && unknown {
				t.Errorf("%s has an unknown property, but is valid by the schema", file)
			}
		}
	}
	examples, _ := filepath.Glob("../examples/*/acr-task.yaml")
	if len(examples) == 0 {
		t.Error("no examples")
	}
	for _, file := range examples {
		values, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "values.yaml")) // if it has some
		rendered, err := Render([]byte(readText(t, file)), Options{File: file, Values: values, Run: RunVars{ID: "r1", Registry: "registry.example"},
			Secrets:     func(Secret) (string, error) { return "secret", nil },
			AliasSource: func(src string) ([]byte, error) { return os.ReadFile(filepath.Join(filepath.Dir(file), src)) }})
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if err := v.validate(rendered); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestSchemaFindsMistakes(t *testing.T) {
	v := newValidator(t)
	for _, tc := range []struct{ src, want string }{
		{"steps:\n- biuld: .\n", "biuld"},
		{"steps:\n- id: a\n", "anyOf"},
		{"steps:\n- push: a\n", "type"},
		{"steps:\n- cmd: a\n  when: b\n", "type"},
		{"steps:\n- cmd: a\n  timeout: 10m\n", "anyOf"},
		{"steps:\n- cmd: a\n  retries: -1\n", "anyOf"},
		{"steps:\n- cmd: a\n  detach: maybe\n", "anyOf"},
		{"steps:\n- build: .\n  cache: true\n", "anyOf"},
		{"steps:\n- cmd: a\n  volumeMounts: [{name: a, path: b}]\n", "path"},
		{"version: 1.1.0\n", "anyOf"},
		{"env: {A: b}\n", "type"},
		{"stepTimeout: '600'\n", "anyOf"},
		{"volumes: [{name: a, secret: {}}]\n", "minProperties"},
		{"networks: [{name: a, isDefault: 3}]\n", "anyOf"},
	} {
		if err := v.validate(tc.src); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("validate(%q) = %v, want %s", tc.src, err, tc.want)
		}
	}
}

// TestSchemaHasEveryProperty checks that tables and documentation name the same properties.
func TestSchemaHasEveryProperty(t *testing.T) {
	doc := readText(t, "../docs/task-language.md")
	for _, names := range [][]string{taskTable.names, stepTable.names, secretTable.names, networkTable.names, volumeTable.names, mountTable.names, aliasTable.names} {
		for _, name := range names {
			if !strings.Contains(doc, "`"+name+"`") {
				t.Errorf("docs/task-language.md says nothing about `%s`", name)
			}
		}
	}
	for _, prop := range stepTable.properties {
		if (prop.doc == "") != (prop.ignored != "") || (prop.set == nil) != (prop.ignored != "") {
			t.Errorf("property %s: %+v", prop.name, prop)
		}
	}
}

// A validator checks documents against the schema: the keywords that the schema uses, and no others.
type validator struct {
	root map[string]any
	p    *parser
}

func newValidator(t *testing.T) *validator {
	t.Helper()
	v := &validator{p: newParser(nil, &Options{})}
	if err := json.Unmarshal(Schema(), &v.root); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *validator) validate(src string) error {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(src), &doc); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	v.p.nodes = 0
	return v.check(v.root, v.data(deref(doc.Content[0]), true), "")
}

// data returns what a node means. Keys of the task that hold an anchor to be referred to are left out.
func (v *validator) data(n *yaml.Node, top bool) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for _, f := range v.p.fields(place{}, "", n) {
			if !top || f.value.Anchor == "" || taskTable.byName[f.name] != nil {
				m[f.name] = v.data(f.value, false)
			}
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			list = append(list, v.data(deref(item), false))
		}
		return list
	}
	if isNull(n) {
		return nil
	}
	if b, ok := yamlBool(n.Value); ok && plain(n) {
		return b
	}
	if i, ok := yamlInt(n.Value); ok && plain(n) {
		return float64(i)
	}
	return n.Value
}

func (v *validator) check(s any, x any, at string) error {
	if s == true {
		return nil
	}
	if s == false {
		return fmt.Errorf("%s is not allowed", at)
	}
	for keyword, arg := range s.(map[string]any) {
		if err := v.keyword(keyword, arg, s.(map[string]any), x, at); err != nil {
			return err
		}
	}
	return nil
}

func (v *validator) keyword(keyword string, arg any, s map[string]any, x any, at string) error {
	bad := fmt.Errorf("%s: %v is against %s %v", at, x, keyword, arg)
	object, _ := x.(map[string]any)
	array, _ := x.([]any)
	text, isText := x.(string)
	number, isNumber := x.(float64)
	switch keyword {
	case "$schema", "title", "description", "deprecated", "$defs", "patternProperties", "additionalProperties":
	case "$ref":
		return v.check(v.root["$defs"].(map[string]any)[strings.TrimPrefix(arg.(string), "#/$defs/")], x, at)
	case "type":
		if types, ok := arg.([]any); ok && !slices.Contains(types, any(typeOf(x))) || !ok && arg != typeOf(x) {
			return bad
		}
	case "properties":
		return v.properties(arg.(map[string]any), s, object, at)
	case "items":
		for i, item := range array {
			if err := v.check(arg, item, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case "anyOf":
		for _, alternative := range arg.([]any) {
			if v.check(alternative, x, at) == nil {
				return nil
			}
		}
		return bad
	case "required":
		for _, name := range arg.([]any) {
			if _, ok := object[name.(string)]; !ok && object != nil {
				return bad
			}
		}
	case "pattern":
		if isText && !regexp.MustCompile(arg.(string)).MatchString(text) {
			return bad
		}
	case "minimum":
		if isNumber && number < arg.(float64) {
			return bad
		}
	case "minProperties":
		if object != nil && float64(len(object)) < arg.(float64) {
			return bad
		}
	default:
		return fmt.Errorf("the validator of this test does not know %q", keyword)
	}
	return nil
}

func (v *validator) properties(props, s, object map[string]any, at string) error {
	for name, x := range object {
		sub, ok := props[name]
		if patterns, has := s["patternProperties"].(map[string]any); !ok && has {
			for pattern, p := range patterns {
				if regexp.MustCompile(pattern).MatchString(name) {
					sub, ok = p, true
				}
			}
		}
		if !ok {
			sub = s["additionalProperties"]
		}
		if err := v.check(sub, x, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func typeOf(x any) string {
	switch x.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case float64:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	}
	return "object"
}
