package task

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"
)

// Encode writes tasks as a YAML file that [Decode] reads back as the same tasks, except for what the
// server sets: UID, times and limits. Properties are in a fixed order, empty ones are left out.
func Encode(tasks ...*Task) ([]byte, error) {
	if len(tasks) == 0 {
		return nil, nil
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	for _, t := range tasks {
		doc := document{APIVersion: APIVersion, Kind: Kind, Task: *t}
		n := mapping()
		appendStruct(n, reflect.ValueOf(doc))
		if err := enc.Encode(n); err != nil {
			return nil, fmt.Errorf("task %q: %w", t.Name, err)
		}
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func mapping() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func appendStruct(n *yaml.Node, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch value := v.Field(i); {
		case f.Tag.Get("yaml") == "-":
		case option == "inline":
			appendStruct(n, value)
		case !value.IsZero():
			n.Content = append(n.Content, text(name), node(value))
		}
	}
}

// node returns a value as YAML.
func node(v reflect.Value) *yaml.Node {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		s, _ := m.MarshalText() // ours never fail
		return text(string(s))
	}
	switch v.Kind() {
	case reflect.Pointer:
		return node(v.Elem())
	case reflect.Struct:
		n := mapping()
		appendStruct(n, v)
		return n
	case reflect.Map:
		n := mapping()
		for _, k := range sortedKeys(v.Interface().(map[string]string)) {
			n.Content = append(n.Content, text(k), text(v.MapIndex(reflect.ValueOf(k)).String()))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range v.Len() {
			n.Content = append(n.Content, node(v.Index(i)))
		}
		return n
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case reflect.Float64:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: strconv.FormatFloat(v.Float(), 'g', -1, 64)}
	}
	return text(v.String())
}

// text returns a string as YAML: as a block if it is an ordinary text of several lines, else quoted where
// it could be read as something else.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case isBlock(s):
		n.Style = yaml.LiteralStyle
	case !isPlain(s):
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// isBlock reports whether a text comes back from a literal block as it was: printable lines, the first not
// indented, none ending in a space, at most one line break at the end.
func isBlock(s string) bool {
	if !strings.Contains(s, "\n") || strings.HasSuffix(s, "\n\n") || s != strings.TrimLeft(s, " \t\n") {
		return false
	}
	for line := range strings.SplitSeq(s, "\n") {
		if line != strings.TrimRight(line, " \t") || !isPlain(strings.ReplaceAll(line, "\t", " ")) {
			return false
		}
	}
	return true
}

// isPlain reports whether all characters can be shown.
func isPlain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Hash returns a digest of the definition: tasks with equal hashes are written the same. It does not
// cover what the server sets.
func (t *Task) Hash() string {
	definition := *t
	definition.UID = ""
	definition.Created, definition.Updated = time.Time{}, time.Time{}
	definition.Limits = nil
	data, err := json.Marshal(definition)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// WorkHash returns a digest of what runs of the task execute: the definition without its triggers and whether
// it is enabled.
func (t *Task) WorkHash() string {
	work := *t
	work.Status, work.Triggers = "", Triggers{}
	return work.Hash()
}
