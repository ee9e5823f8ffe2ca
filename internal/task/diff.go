package task

import (
	"fmt"
	"reflect"
	"strings"
)

// A Change is a property that differs between two definitions. Old is empty if it is new, New if it is gone.
type Change struct {
	Property string `json:"property"`
	Old      string `json:"old,omitempty"`
	New      string `json:"new,omitempty"`
}

// String returns the change for a list: "+ property: new", "- property: old" or "~ property: old -> new".
func (c Change) String() string {
	switch {
	case c.Old == "":
		return "+ " + c.Property + ": " + c.New
	case c.New == "":
		return "- " + c.Property + ": " + c.Old
	}
	return "~ " + c.Property + ": " + c.Old + " -> " + c.New
}

// Diff lists what differs between two normalized definitions, in the order of the properties. Triggers
// are told apart by name, credentials by server. A nil task has no properties.
func Diff(before, after *Task) []Change {
	a, b := flatten(before), flatten(after)
	var changes []Change
	for _, p := range b.order {
		if a.values[p] != b.values[p] {
			old, changed := show(a.values[p], b.values[p])
			changes = append(changes, Change{p, old, changed})
		}
	}
	for _, p := range a.order {
		if _, kept := b.values[p]; !kept {
			old, _ := show(a.values[p], "")
			changes = append(changes, Change{p, old, ""})
		}
	}
	return changes
}

// show makes two values fit for one line. Long ones are told by their length.
func show(a, b string) (string, string) {
	short := func(s string) string {
		if n := strings.Count(s, "\n"); n > 0 || len(s) > 200 {
			return fmt.Sprintf("(%d lines, %d bytes)", n+1, len(s))
		}
		return s
	}
	x, y := short(a), short(b)
	if x == y && x != "" {
		y += ", other text"
	}
	return x, y
}

type flat struct {
	order  []string
	values map[string]string
}

func flatten(t *Task) flat {
	f := flat{values: map[string]string{}}
	if t != nil {
		f.add("", reflect.ValueOf(*t))
	}
	return f
}

func (f *flat) add(at string, v reflect.Value) {
	switch {
	case v.IsZero() && v.Kind() != reflect.Struct:
		return
	case v.Kind() == reflect.Pointer:
		f.add(at, v.Elem())
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if field := v.Type().Field(i); field.Tag.Get("yaml") != "-" {
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				f.add(join(at, name), v.Field(i))
			}
		}
	case v.Kind() == reflect.Map:
		for _, k := range sortedKeys(v.Interface().(map[string]string)) {
			f.leaf(key(at, k), quote(v.MapIndex(reflect.ValueOf(k)).String()))
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			f.add(at+"["+v.Index(i).Field(0).String()+"]", v.Index(i)) // the first field is the name
		}
	case v.Kind() == reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = v.Index(i).String()
		}
		f.leaf(at, "["+strings.Join(items, ", ")+"]")
	default:
		f.leaf(at, fmt.Sprint(v.Interface()))
	}
}

// quote makes an empty value visible.
func quote(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

func (f *flat) leaf(at, value string) {
	f.order = append(f.order, at)
	f.values[at] = value
}
