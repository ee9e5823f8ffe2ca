package config

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// maxFile is the size of the largest file of settings, in bytes.
const maxFile = 1 << 20

// file sets from the file what is not set yet.
func (s Settings) file(from Source) error {
	content, err := read(from.File)
	if err != nil {
		return err
	}
	return s.parse(content, from)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	err = errors.Join(err, f.Close())
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return content, err
}

// parse sets from the content of the file what is not set yet.
func (s Settings) parse(content []byte, from Source) error {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return syntax(from.File, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: want one document, without --- between parts of it", from.File)
	}
	if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" {
		return nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return at(from.File, top, errors.New("want settings, such as listen: 127.0.0.1:7070"))
	}
	var errs []error
	seen := map[string]int{}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if line := seen[key.Value]; line > 0 {
			errs = append(errs, at(from.File, key, fmt.Errorf("%s: given already in line %d", key.Value, line)))
			continue
		}
		seen[key.Value] = key.Line
		if err := s.entry(key, value, from); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// entry sets the setting of one key, unless it has its value from elsewhere. It is looked at all the same.
func (s Settings) entry(key, value *yaml.Node, from Source) error {
	setting, known := s[key.Value]
	if !known || key.Kind != yaml.ScalarNode {
		err := fmt.Errorf("%q is no setting", key.Value)
		var names []string
		for name := range s {
			names = append(names, name)
		}
		slices.Sort(names)
		if like, ok := from.Nearest(key.Value, names); ok {
			err = fmt.Errorf("%w (did you mean %q?)", err, like)
		}
		return at(from.File, key, err)
	}
	place := value
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	values, err := texts(setting.Flag, value)
	if err == nil && setting.Origin.Kind == Default {
		s[key.Value] = Setting{setting.Flag, Origin{Kind: File, Name: from.File, Line: place.Line, Column: place.Column}}
		err = assign(setting.Flag, values)
	}
	if err != nil {
		return at(from.File, place, fmt.Errorf("%s: %w", key.Value, err))
	}
	return nil
}

func assign(f *pflag.Flag, values []string) error {
	if _, list := f.Value.(pflag.SliceValue); list {
		return replace(f, values)
	}
	if len(values) == 0 { // an empty table
		return nil
	}
	return set(f, values[0])
}

// texts returns the values of a node as a flag takes them: those of a list one by one.
func texts(f *pflag.Flag, n *yaml.Node) ([]string, error) {
	if _, list := f.Value.(pflag.SliceValue); list {
		if n.Kind != yaml.SequenceNode {
			return nil, errors.New("want a list, such as [a, b]")
		}
		var values []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.ShortTag() == "!!null" {
				return nil, fmt.Errorf("line %d: want a list of strings", item.Line)
			}
			values = append(values, item.Value)
		}
		return values, nil
	}
	if f.Value.Type() == "stringToString" {
		return table(n)
	}
	if !suits(f.Value.Type(), n) {
		want := wanted(f)
		if want == "" {
			want = "a string"
			if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
				want = "a string: put it in quotes"
			}
		}
		return nil, errors.New("want " + want)
	}
	return []string{n.Value}, nil
}

// suits reports whether a node is of a flag's type. Sizes and durations may be numbers: what they mean is the flag's to say.
func suits(flagType string, n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	switch tag := n.ShortTag(); flagType {
	case "bool":
		return tag == "!!bool"
	case "int":
		return tag == "!!int"
	case "string":
		return tag == "!!str"
	default:
		return tag == "!!str" || tag == "!!int" || tag == "!!float"
	}
}

// table returns the entries of a mapping of strings as one text, or nothing if it is empty.
func table(n *yaml.Node) ([]string, error) {
	want := errors.New("want a table of strings, such as {name: value}")
	if n.Kind != yaml.MappingNode {
		return nil, want
	}
	var entries []string
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode || value.ShortTag() == "!!null" {
			return nil, want
		}
		entries = append(entries, key.Value+"="+value.Value)
	}
	if len(entries) == 0 {
		return nil, nil
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(entries); err != nil {
		return nil, err
	}
	w.Flush()
	return []string{strings.TrimSuffix(b.String(), "\n")}, w.Error()
}

// at adds the place of a node.
func at(file string, n *yaml.Node, err error) error {
	return fmt.Errorf("%s:%d:%d: %w", file, n.Line, n.Column, err)
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntax gives an error of the YAML parser its place.
func syntax(file string, err error) error {
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s:%s: %s", file, m[1], m[2])
	}
	return fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
}
