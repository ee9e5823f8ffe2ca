package task

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"kiln/internal/cron"
	"kiln/taskspec"
)

// Bounds of a task.
const (
	MaxTimeout  = Duration(8 * time.Hour)
	minTimeout  = Duration(time.Second)
	maxQuiet    = Duration(5 * time.Minute)
	maxTriggers = 50
	maxGlobs    = 100
	maxValues   = 500
	maxValue    = 64 << 10 // bytes of one value
	maxInline   = 512 << 10
	maxCPU      = 1024
	minMemory   = Bytes(16 << 20)
)

// Names of tasks: 1 to 50 letters, digits, dashes and underscores, a letter or digit first and last. ACR
// asks for 5 at least.
var (
	taskName    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,48}[A-Za-z0-9])?$`)
	triggerName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?$`)
	valueName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,127}$`)
	secretName  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$`)
	serverName  = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:]+\])(:[0-9]{1,5})?$`)
	platform    = regexp.MustCompile(`^linux/(amd64|386|arm|arm/v[5678]|arm64|riscv64|ppc64le|s390x|loong64|mips64le)$`)
)

// Validate reports every mistake of a normalized task as [Errors], or nil.
func (t *Task) Validate() error {
	var v validator
	v.name("name", t.Name)
	v.status("status", t.Status)
	context := v.context(t)
	v.step(t, context)
	v.values(t)
	if !platform.MatchString(t.Platform) {
		v.errorf("platform", "%q is not known; write linux/amd64, linux/arm64 or another linux/ARCHITECTURE", clip(t.Platform))
	}
	if t.Timeout < minTimeout || t.Timeout > MaxTimeout {
		v.errorf("timeout", "%s is not from %s to %s", t.Timeout, minTimeout, MaxTimeout)
	}
	if !(t.CPU >= 0 && t.CPU <= maxCPU) {
		v.errorf("cpu", "%v is not from 0 to %d", t.CPU, maxCPU)
	}
	if t.Concurrency < 0 {
		v.errorf("concurrency", "%d is negative; 0 means any number", t.Concurrency)
	}
	if t.Memory != 0 && t.Memory < minMemory {
		v.errorf("memory", "%s is less than %s", t.Memory, minMemory)
	}
	if t.Pool != "" && !triggerName.MatchString(t.Pool) {
		v.errorf("pool", "%q is no name of a pool", clip(t.Pool))
	}
	v.credentials(t.Credentials)
	v.sources(t, context)
	v.baseImage(t.Triggers.BaseImage)
	v.timers(t.Triggers.Timers)
	if len(v.errs) == 0 {
		return nil
	}
	return v.errs
}

// ValidName says what is wrong with the name of a task.
func ValidName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("is missing")
	case !taskName.MatchString(name):
		return fmt.Errorf("%q is not 1 to 50 letters, digits, - and _, a letter or digit first and last", clip(name))
	case NameKey(name) == "quicktask":
		return fmt.Errorf("%q is reserved for runs without a task", name)
	}
	return nil
}

// ValidSecretName says what is wrong with the name of a secret.
func ValidSecretName(name string) error {
	if !secretName.MatchString(name) {
		return fmt.Errorf("%q is not 1 to 128 letters, digits, dots, - and _, a letter or digit first and last", clip(name))
	}
	return nil
}

type validator struct{ errs Errors }

func (v *validator) errorf(property, format string, args ...any) {
	v.errs = append(v.errs, &taskspec.Error{Property: property, Message: fmt.Sprintf(format, args...)})
}

// check records an error about a property, if there is one.
func (v *validator) check(property string, err error) {
	if err != nil {
		v.errorf(property, "%s", err)
	}
}

func (v *validator) name(property, name string) { v.check(property, ValidName(name)) }

func (v *validator) status(property string, s Status) { oneOfThese(v, property, s, Enabled, Disabled) }

// oneOfThese reports a value that is none of those allowed.
func oneOfThese[S ~string](v *validator, property string, s S, allowed ...S) {
	if slices.Contains(allowed, s) {
		return
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	v.errorf(property, "%q is not known; write %s", clip(string(s)), strings.Join(words, ", "))
}

func (v *validator) context(t *Task) Context {
	c, err := ParseContext(t.Context)
	v.check("context", err)
	v.secret("contextSecret", t.ContextSecret)
	if t.ContextSecret != "" && err == nil && c.Kind == NoContext {
		v.errorf("contextSecret", "there is no context that it could be for")
	}
	return c
}

func (v *validator) secret(property, name string) {
	if name != "" && !secretName.MatchString(name) {
		v.errorf(property, "%q is no name of a secret", clip(name))
	}
}

func (v *validator) step(t *Task, c Context) {
	s, set := t.Step, 0
	for _, is := range []bool{s.Build != nil, s.File != nil, s.Inline != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		v.errorf("step", "has %d of build, file and inline; write exactly one", set)
		return
	}
	inContext := s.Build != nil || s.File != nil
	if inContext && c.Kind == NoContext && t.Context == "" {
		v.errorf("context", "is missing: the step reads a file of it")
	}
	switch {
	case s.Build != nil:
		v.build(s.Build)
	case s.File != nil:
		v.path("step.file.path", s.File.Path)
		if s.File.Values != "" {
			v.path("step.file.values", s.File.Values)
		}
	default:
		if strings.TrimSpace(s.Inline.Task) == "" {
			v.errorf("step.inline.task", "is missing; write the text of a task file")
		}
		if !isText(s.Inline.Task) || !isText(s.Inline.Values) {
			v.errorf("step.inline", "is no text")
		}
		if len(s.Inline.Task)+len(s.Inline.Values) > maxInline {
			v.errorf("step.inline", "has more than %d bytes; keep it as a file of the context", maxInline)
		}
	}
}

// isText reports whether a value can be written in a file and handed to a process.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func (v *validator) path(property, p string) { v.check(property, checkPath(p)) }

func (v *validator) build(b *Build) {
	v.path("step.build.dockerfile", b.Dockerfile)
	if len(b.Images) > maxTriggers {
		v.errorf("step.build.images", "has more than %d names", maxTriggers)
	}
	for i, name := range b.Images {
		if strings.TrimSpace(name) == "" || !isText(name) || strings.ContainsAny(name, "\n\r") || len(name) > 512 {
			v.errorf(index("step.build.images", i), "%q is no name of an image", clip(name))
		}
	}
	v.valueMap("step.build.args", b.Args)
	v.secretMap("step.build.secretArgs", b.SecretArgs, b.Args)
}

func (v *validator) values(t *Task) {
	v.valueMap("set", t.Set)
	v.secretMap("setSecret", t.SetSecret, t.Set)
	if t.Step.Build == nil {
		return
	}
	if len(t.Set) > 0 {
		v.errorf("set", "has no effect on a build; write step.build.args")
	}
	if len(t.SetSecret) > 0 {
		v.errorf("setSecret", "has no effect on a build; write step.build.secretArgs")
	}
}

func (v *validator) valueMap(property string, m map[string]string) {
	if len(m) > maxValues {
		v.errorf(property, "has more than %d values", maxValues)
		return
	}
	for _, name := range sortedKeys(m) {
		if !valueName.MatchString(name) {
			v.errorf(key(property, name), "is no name of a value; write letters, digits and underscores")
		}
		if len(m[name]) > maxValue || !isText(m[name]) {
			v.errorf(key(property, name), "has more than %d bytes, or is no text", maxValue)
		}
	}
}

func (v *validator) secretMap(property string, m, clear map[string]string) {
	v.valueMap(property, m)
	for _, name := range sortedKeys(m) {
		if _, twice := clear[name]; twice {
			v.errorf(key(property, name), "is also given as a value that is not secret")
		}
		if m[name] == "" {
			v.errorf(key(property, name), "names no secret")
		}
		v.secret(key(property, name), m[name])
	}
}

func (v *validator) credentials(list []Credential) {
	if len(list) > maxTriggers {
		v.errorf("credentials", "has more than %d entries", maxTriggers)
		return
	}
	for i, c := range list {
		at := index("credentials", i)
		switch {
		case !serverName.MatchString(c.Server):
			v.errorf(at+".server", "%q is no login server; write HOST or HOST:PORT", clip(c.Server))
		case i > 0 && list[i-1].Server == c.Server:
			v.errorf(at+".server", "%s has a credential already", c.Server)
		}
		user := c.Username != "" || c.UsernameSecret != ""
		switch {
		case c.Username != "" && c.UsernameSecret != "":
			v.errorf(at, "has a username and a usernameSecret; write one of them")
		case c.TokenSecret != "" && (user || c.PasswordSecret != ""):
			v.errorf(at, "has a tokenSecret and a user name or password; write one or the other")
		case c.TokenSecret == "" && (!user || c.PasswordSecret == ""):
			v.errorf(at, "needs username (or usernameSecret) and passwordSecret, or tokenSecret")
		}
		v.secret(at+".usernameSecret", c.UsernameSecret)
		v.secret(at+".passwordSecret", c.PasswordSecret)
		v.secret(at+".tokenSecret", c.TokenSecret)
	}
}

func (v *validator) timers(list []Timer) {
	if len(list) > maxTriggers {
		v.errorf("triggers.timers", "has more than %d timers", maxTriggers)
		return
	}
	names := map[string]bool{}
	for i, t := range list {
		at := index("triggers.timers", i)
		v.triggerName(at, t.Name, names)
		v.status(at+".status", t.Status)
		oneOfThese(v, at+".catchUp", t.CatchUp, CatchUpOne, CatchUpNone)
		if _, err := cron.Parse(t.Schedule); err != nil {
			v.check(at+".schedule", err)
		}
		_, err := t.Location()
		v.check(at+".timeZone", err)
	}
}

// Location returns the time zone of a timer.
func (t Timer) Location() (*time.Location, error) {
	name := t.TimeZone
	if len(name) > 64 || name == "Local" {
		return nil, fmt.Errorf("%q is no time zone; write a name such as Europe/Berlin", clip(name))
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%q is no time zone known here; write a name such as Europe/Berlin", name)
	}
	return loc, nil
}

func (v *validator) triggerName(at, name string, names map[string]bool) {
	if !triggerName.MatchString(name) {
		v.errorf(at+".name", "%q is not 1 to 64 letters, digits, dots, - and _", clip(name))
	}
	if names[name] {
		v.errorf(at+".name", "%q is the name of another one", clip(name))
	}
	names[name] = true
}
