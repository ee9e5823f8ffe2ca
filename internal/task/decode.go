package task

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"kiln/taskspec"
)

// Bounds of a file.
const (
	maxFile      = 1 << 20
	maxDocuments = 2000
	maxNodes     = 500_000
	maxItems     = 1000 // of one list
	maxDepth     = 20
	maxErrors    = 50
)

// Decode reads the tasks of a YAML file: documents that begin with apiVersion: kiln/v1 and kind: Task,
// followed by the properties of a [Task] under the names of its JSON form. An unknown property is a
// mistake, as is one that is written twice; anchors and aliases may be used, merges not. The tasks are
// normalized and valid. The error is an [Errors] with the file, line and column of each mistake.
func Decode(file string, data []byte) ([]*Task, error) {
	d := decoder{file: file}
	if len(data) > maxFile {
		d.errorf(nil, "", "the file has %d bytes, more than %d", len(data), maxFile)
		return nil, d.errs
	}
	var tasks []*Task
	lines := map[string]int{}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); len(d.errs) < maxErrors; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			d.syntax(err)
			break
		}
		if len(doc.Content) == 0 || isNull(doc.Content[0]) {
			continue
		}
		if len(tasks) == maxDocuments {
			d.errorf(&doc, "", "the file has more than %d documents", maxDocuments)
			break
		}
		t := d.task(doc.Content[0])
		if other, twice := lines[NameKey(t.Name)]; twice && t.Name != "" {
			d.errorf(doc.Content[0], "name", "%q is already the name of the task in line %d", t.Name, other)
		}
		lines[NameKey(t.Name)] = doc.Content[0].Line
		tasks = append(tasks, t)
	}
	if len(d.errs) > 0 {
		return nil, d.errs
	}
	return tasks, nil
}

type decoder struct {
	file   string
	errs   Errors
	nodes  int
	places map[string]*yaml.Node // by path of the property, within the document
}

// document is what stands in a file.
type document struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Task       Task   `json:",inline"`
}

func (d *decoder) task(n *yaml.Node) *Task {
	d.places = map[string]*yaml.Node{"": n}
	before := len(d.errs)
	var doc document
	d.value(n, reflect.ValueOf(&doc).Elem(), "", 0)
	if doc.APIVersion != APIVersion && d.places["apiVersion"] != nil {
		d.errorf(d.places["apiVersion"], "apiVersion", "%q is not known; write %s", clip(doc.APIVersion), APIVersion)
	} else if doc.APIVersion == "" {
		d.errorf(n, "apiVersion", "is missing; write apiVersion: %s", APIVersion)
	}
	if doc.Kind != Kind {
		d.errorf(d.place("kind"), "kind", "%q is not known; write kind: %s", clip(doc.Kind), Kind)
	}
	t := &doc.Task
	if len(d.errs) > before {
		return t // what could not be read would be called missing
	}
	var places []string // the credentials are about to be sorted
	for _, c := range t.Credentials {
		places = append(places, c.Server)
	}
	t.Normalize()
	var errs Errors
	if errors.As(t.Validate(), &errs) {
		for _, e := range errs {
			at := d.place(unsorted(e.Property, t.Credentials, places))
			e.File, e.Line, e.Col = d.file, at.Line, at.Column
			d.errs = append(d.errs, e)
		}
	}
	return t
}

// unsorted returns the path that a property of a credential had in the file.
func unsorted(property string, list []Credential, written []string) string {
	rest, ok := strings.CutPrefix(property, "credentials[")
	if !ok {
		return property
	}
	num, tail, _ := strings.Cut(rest, "]")
	i, err := strconv.Atoi(num)
	if err != nil || i >= len(list) {
		return property
	}
	for j, server := range written {
		probe := Task{Credentials: []Credential{{Server: server}}}
		if probe.Normalize(); probe.Credentials[0].Server == list[i].Server {
			return index("credentials", j) + tail
		}
	}
	return property
}

// place returns the node of a property, or of the nearest one around it that is written.
func (d *decoder) place(property string) *yaml.Node {
	for property != "" {
		if n := d.places[property]; n != nil {
			return n
		}
		property = property[:max(0, strings.LastIndexAny(property, ".["))]
	}
	return d.places[""]
}

func (d *decoder) errorf(n *yaml.Node, property, format string, args ...any) {
	e := &taskspec.Error{File: d.file, Property: property, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		e.Line, e.Col = n.Line, n.Column
	}
	if len(d.errs) < maxErrors {
		d.errs = append(d.errs, e)
	}
}

var syntaxLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

// syntax records what the parser of YAML says.
func (d *decoder) syntax(err error) {
	message, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = m[2]
	}
	d.errs = append(d.errs, &taskspec.Error{File: d.file, Line: line, Message: message})
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

// value decodes a node into a value of one of the types that tasks are made of.
func (d *decoder) value(n *yaml.Node, v reflect.Value, at string, depth int) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.nodes++; d.nodes > maxNodes || depth > maxDepth {
		if d.nodes <= maxNodes+1 {
			d.errorf(n, at, "the file is nested too deeply or has too many values, aliases included")
		}
		return
	}
	d.places[at] = n
	if isNull(n) {
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case v.CanAddr() && v.Addr().Type().Implements(textType):
		if s, ok := d.scalar(n, at, "a text"); ok {
			if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
				d.errorf(n, at, "%s", err)
			}
		}
	case v.Kind() == reflect.Struct:
		d.structure(n, v, at, depth)
	case v.Kind() == reflect.Map:
		d.stringMap(n, v, at)
	case v.Kind() == reflect.Slice:
		d.list(n, v, at, depth)
	default:
		d.plain(n, v, at)
	}
}

// plain decodes a string, a boolean or a number.
func (d *decoder) plain(n *yaml.Node, v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.String:
		if s, ok := d.scalar(n, at, "a text"); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if s, ok := d.scalar(n, at, "true or false"); ok {
			b, err := strconv.ParseBool(s)
			if err != nil || len(s) < 4 {
				d.errorf(n, at, "%q where true or false is needed", clip(s))
			}
			v.SetBool(b)
		}
	case reflect.Float64:
		if s, ok := d.scalar(n, at, "a number"); ok {
			f, err := strconv.ParseFloat(s, 64)
			if err != nil || f-f != 0 {
				d.errorf(n, at, "%q where a number is needed", clip(s))
			}
			v.SetFloat(f)
		}
	}
}

func (d *decoder) scalar(n *yaml.Node, at, what string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.errorf(n, at, "%s where %s is needed", describe(n), what)
		return "", false
	}
	return n.Value, true
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, at string, depth int) {
	if n.Kind != yaml.MappingNode {
		d.errorf(n, at, "%s where a map of properties is needed", describe(n))
		return
	}
	known := properties(v)
	d.pairs(n, at, func(k, value *yaml.Node) {
		f, ok := known[k.Value]
		if !ok {
			d.errorf(k, at, "unknown property %q%s", clip(k.Value), didYouMean(k.Value, sortedKeys(known)))
			return
		}
		d.value(value, f, join(at, k.Value), depth+1)
	})
}

// properties returns the fields of a structure that may be written, by name.
func properties(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Tag.Get("yaml") == "-":
		case option == "inline":
			for name, inner := range properties(v.Field(i)) {
				fields[name] = inner
			}
		default:
			fields[name] = v.Field(i)
		}
	}
	return fields
}

// pairs calls visit for each key and value of a map.
func (d *decoder) pairs(n *yaml.Node, at string, visit func(k, value *yaml.Node)) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && len(d.errs) < maxErrors; i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode:
			d.errorf(k, at, "%s where a name is needed", describe(k))
		case k.Tag == "!!merge":
			d.errorf(k, at, "merges with << are not supported; use an alias for a whole value")
		case seen[k.Value]:
			d.errorf(k, join(at, k.Value), "is written twice")
		default:
			seen[k.Value] = true
			visit(k, n.Content[i+1])
		}
	}
}

func (d *decoder) stringMap(n *yaml.Node, v reflect.Value, at string) {
	if n.Kind != yaml.MappingNode {
		d.errorf(n, at, "%s where a map of names to values is needed", describe(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, at, func(k, value *yaml.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(value, e, key(at, k.Value), maxDepth-1)
		v.SetMapIndex(reflect.ValueOf(k.Value), e)
	})
	if v.Len() == 0 {
		v.SetZero()
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, at string, depth int) {
	if n.Kind != yaml.SequenceNode {
		hint := ""
		if n.Kind == yaml.ScalarNode {
			hint = fmt.Sprintf("; write [%s]", clip(n.Value))
		}
		d.errorf(n, at, "%s where a list is needed%s", describe(n), hint)
		return
	}
	if len(n.Content) > maxItems {
		d.errorf(n, at, "has more than %d entries", maxItems)
		return
	}
	for i, item := range n.Content {
		if len(d.errs) >= maxErrors || d.nodes > maxNodes {
			return
		}
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(item, e, index(at, i), depth+1)
		v.Set(reflect.Append(v, e))
	}
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(clip(n.Value))
}
