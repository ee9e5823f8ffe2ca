// Package config completes the flags of a command from the environment and from a file of settings.
//
// A setting is a flag. Its value is the one of the command line, else that of the environment variable
// KILN_<NAME>, else that of the file, else its default; a list replaces the list of a lower place, it is not
// added to it. The file is YAML: names of flags and their values. Everything that is wrong in environment and file is reported at
// once, each with its place, and what is wrong is not set. What is read is bounded. Values are never
// secrets: those are in files that settings name; what looks like one in an address is hidden all the same.
package config

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// A Source says where settings come from, beside the command line.
type Source struct {
	File    string                                                   // the file of settings; "" for none
	Lookup  func(name string) (value string, set bool)               // environment variables
	Nearest func(name string, names []string) (like string, ok bool) // what a wrong name may have meant
}

// A Kind is a place where values are set.
type Kind string

// The kinds of places, the strongest first.
const (
	Flag        Kind = "flag"
	Environment Kind = "environment"
	File        Kind = "file"
	Default     Kind = "default"
)

// An Origin is the place that a setting has its value from.
type Origin struct {
	Kind         Kind
	Name         string // of the environment variable or the file
	Line, Column int    // in the file, from 1
}

// String is the place as people look for it.
func (o Origin) String() string {
	switch o.Kind {
	case Environment:
		return o.Name
	case File:
		return fmt.Sprintf("%s:%d:%d", o.Name, o.Line, o.Column)
	}
	return string(o.Kind)
}

// A Setting is a flag with the place of its value.
type Setting struct {
	Flag   *pflag.Flag
	Origin Origin
}

// Settings are the settings of a command by their names.
type Settings map[string]Setting

// variables begin with prefix.
const prefix = "KILN_"

// Variable returns the environment variable of a setting.
func Variable(name string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Load sets those of the flags that the command line has not set, and returns where each has its value from. The error, which
// may be several joined ones, does not keep the rest from being set.
func Load(flags *pflag.FlagSet, from Source) (Settings, error) {
	settings := Settings{}
	flags.VisitAll(func(f *pflag.Flag) {
		origin := Origin{Kind: Default}
		if f.Changed {
			origin.Kind = Flag
		}
		settings[f.Name] = Setting{Flag: f, Origin: origin}
	})
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if err := settings.environment(f, from.Lookup); err != nil {
			errs = append(errs, err)
		}
	})
	if from.File != "" {
		errs = append(errs, settings.file(from))
	}
	return settings, errors.Join(errs...)
}

// environment sets a flag from its variable. An empty one is as good as none.
func (s Settings) environment(f *pflag.Flag, lookup func(string) (string, bool)) error {
	name := Variable(f.Name)
	text, _ := lookup(name)
	if text == "" || s[f.Name].Origin.Kind != Default {
		return nil
	}
	s[f.Name] = Setting{f, Origin{Kind: Environment, Name: name}}
	var err error
	if _, list := f.Value.(pflag.SliceValue); list {
		err = setList(f, text)
	} else {
		err = set(f, text)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// setList sets a list from values with commas between them; one with a comma in it is in double quotes.
func setList(f *pflag.Flag, text string) error {
	r := csv.NewReader(strings.NewReader(text))
	values, err := r.Read()
	if err == nil && r.InputOffset() < int64(len(text)) {
		err = errors.New("more than one line")
	}
	if err != nil {
		return fmt.Errorf("%q: want values with commas between them; one that has a comma in it, in double quotes", Redact(text))
	}
	return replace(f, values)
}

func replace(f *pflag.Flag, values []string) error {
	if err := f.Value.(pflag.SliceValue).Replace(values); err != nil {
		return fmt.Errorf("%q: %w", Redact(strings.Join(values, ",")), err)
	}
	f.Changed = true
	return nil
}

// set sets a flag from text.
func set(f *pflag.Flag, text string) error {
	if err := f.Value.Set(text); err != nil {
		if want := wanted(f); want != "" {
			err = errors.New("want " + want)
			_ = f.Value.Set(f.DefValue) // numbers are zero after a mistake
		}
		return fmt.Errorf("%q: %w", Redact(text), err)
	}
	f.Changed = true
	return nil
}

// wanted describes the values of a flag; it is empty for those that do so themselves.
func wanted(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "int":
		return "a whole number"
	case "duration":
		return "a duration such as 90s or 5m"
	}
	return ""
}

// named are the flags that a message is about.
var named = regexp.MustCompile(`--[a-z][a-z0-9-]*`)

// Place adds to each of the errors joined in err where the settings that it names have their values from, unless that
// is the command line.
func (s Settings) Place(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, err := range joined.Unwrap() {
			errs = append(errs, s.Place(err))
		}
		return errors.Join(errs...)
	}
	if err == nil {
		return nil
	}
	var places []string
	for _, name := range named.FindAllString(err.Error(), -1) {
		if o := s[name[2:]].Origin; o.Kind == Environment || o.Kind == File {
			places = append(places, name+" is from "+o.String())
		}
	}
	switch len(places) {
	case 0:
		return err
	case 1:
		_, place, _ := strings.Cut(places[0], " is from ")
		return fmt.Errorf("%s: %w", place, err)
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(places, ", "))
}

// Value returns the value of a setting as JSON has it: a bool, a number, a list, or a string. A table is a list of
// NAME=VALUE. What may be a password is hidden.
func (s Setting) Value() any {
	text := s.Flag.Value.String()
	if list, ok := s.Flag.Value.(pflag.SliceValue); ok {
		return redacted(list.GetSlice())
	}
	switch s.Flag.Value.Type() {
	case "stringToString":
		entries, _ := csv.NewReader(strings.NewReader(strings.Trim(text, "[]"))).Read() // none is no line
		slices.Sort(entries)
		return redacted(entries)
	case "bool":
		return text == "true"
	case "int":
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	}
	return Redact(text)
}

func redacted(values []string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = Redact(v)
	}
	return out
}

// Text returns the value of a setting for people; that of none is "-".
func (s Setting) Text() string {
	switch v := s.Value().(type) {
	case []string:
		return cmp.Or(strings.Join(v, ", "), "-")
	case string:
		return cmp.Or(v, "-")
	default:
		return fmt.Sprint(v)
	}
}

var (
	// userinfo is what may have a password in an address.
	userinfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#@\s]*@`)
	// credential is a parameter of an address that is named like one.
	credential = regexp.MustCompile(`(?i)([?&][^=&\s]*(?:token|secret|passw|pwd|key|sig|cred)[^=&\s]*=)[^&#\s]*`)
)

// Redact hides what may be a password in the addresses in text.
func Redact(text string) string {
	return credential.ReplaceAllString(userinfo.ReplaceAllString(text, "$1***@"), "$1***")
}
