package taskspec

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of a document. Beyond them it is refused with an error.
const (
	maxSource   = 1 << 20 // bytes of the task file, the values file and each alias file
	maxRendered = 2 << 20 // bytes after alias replacement, and after templates
	maxNodes    = 50_000  // YAML nodes, aliases counted as often as they are used, and words of commands
	maxBlanks   = 200_000 // words of the document that are not in block scalars
	maxSteps    = 1000
	maxEnv      = 500     // entries of one env list
	maxSecrets  = 200     // declared secrets
	maxVolumes  = 200     // declared volumes
	maxNetworks = 100     // declared networks
	maxSources  = 20      // entries of alias.src
	maxID       = 200     // bytes of a step's ID
	maxAttempts = 100_000 // retries and repetitions of a step
	maxWords    = 5000    // words of one command
	maxAliases  = 50_000  // uses of aliases
	maxActions  = 20_000  // template actions
	maxCode     = 1 << 18 // bytes of all template actions
	maxDepth    = 64      // nesting of maps and lists in values
	maxErrors   = 100     // reported; more are counted
)

// Options is everything the language needs from outside the document. The zero value is usable.
type Options struct {
	File       string  // name of the document in messages
	Run        RunVars // what .Run and the predefined aliases stand for
	Values     []byte  // YAML of the values file, nil for none
	ValuesFile string  // its name in messages
	// Set holds K=V values that overlay Values. The value is everything after the first "=".
	Set []string
	// Env holds K=V entries of the outermost environment, the weakest. An entry may be a list, K=V,K=V.
	Env []string
	// Network is the name of an existing network that becomes the default of all steps.
	Network string
	// WorkingDirectory is the default of the task's; empty means /workspace.
	WorkingDirectory string
	// Secrets returns the value of a declared secret. Nil means that there is none to be had, and
	// a document that declares secrets is refused. Values never appear in messages.
	Secrets func(Secret) (string, error)
	// Redact holds further values that never appear in messages, such as those of secret settings.
	Redact []string
	// AliasSource returns the content of an entry of alias.src. Nil refuses them all.
	AliasSource func(src string) ([]byte, error)
	// ImageAliases maps the image aliases to references. Nil means DefaultImageAliases.
	ImageAliases map[string]string
	// DockerCommands has cmd steps that are docker commands understood as what they do, for those who execute
	// the task. They stay as they are written otherwise.
	DockerCommands bool
	// Encoded says that the task came without a source context, so aliases are on in any version.
	Encoded bool
	// Lenient makes warnings of mistakes that say what a run would do but that no run could do, such as an
	// invalid image reference: the document means something, so it can be shown. A task that is to be
	// executed is parsed without it.
	Lenient bool
}

// RunVars are the facts about a run that a document can refer to, as {{.Run.ID}} and, for some, $ID.
type RunVars struct {
	ID, Commit, Repository, Branch, GitTag, TriggeredBy string
	Registry                                            string // host of the run's registry
	SharedVolume, OS, OSVersion, Architecture, TaskName string
	Date                                                time.Time // the run's start
}

// Parse renders, decodes and checks a document. The error is an [Errors] that lists every independent
// mistake; the Task is nil then. Warnings are returned in either case.
func Parse(src []byte, opt Options) (*Task, Warnings, error) {
	p := newParser(src, &opt)
	p.render()
	if p.failed() {
		return nil, p.warnings(), p.err()
	}
	task := p.decode()
	if p.failed() {
		return nil, p.warnings(), p.err()
	}
	return task, p.warnings(), nil
}

// Render returns the document's text after aliases and templates, before it is parsed as YAML. The text
// has the values of its secrets in it. The error is an [Errors].
func Render(src []byte, opt Options) (string, error) {
	p := newParser(src, &opt)
	p.render()
	if p.failed() {
		return "", p.err()
	}
	return p.doc.s, nil
}

// A parser carries one document through the stages.
type parser struct {
	opt     *Options
	doc     *text // the document after the stages so far
	aliases *aliases
	secrets map[string]string // resolved values by ID
	values  map[string]any    // .Values, once loaded

	sourceLines *lineIndex // of the author's source, made when first needed
	docLines    *lineIndex // of doc as yaml.v3 counts, likewise
	nodes       int        // YAML nodes decoded so far
	errs, warns []*Error
	dropped     int            // errors beyond maxErrors
	noShortcut  bool           // always use text/template, for tests
	hidden      []string       // what redact replaces, made when first needed
	undefined   map[int]string // an undefined value by the author's line that prints it
}

func newParser(src []byte, opt *Options) *parser {
	return &parser{opt: opt, doc: &text{s: string(src)}}
}

// render takes the document from the source to YAML text.
func (p *parser) render() {
	switch src := p.doc.s; {
	case len(src) > maxSource:
		p.doc = &text{}
		p.fail("the document has %d bytes, more than %d", len(src), maxSource)
		return
	case !utf8.ValidString(src):
		p.failAt(invalidUTF8(src), "the document is not valid UTF-8 here")
		return
	}
	p.doc = stripComments(p.doc)
	p.expandAliases()
	if p.failed() {
		return
	}
	p.renderTemplate()
	if !p.failed() && p.doc.s == "" {
		p.fail("rendered template was empty: there is no task in it")
	}
}

// invalidUTF8 returns the offset of the first byte of s that is not UTF-8.
func invalidUTF8(s string) int {
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd") {
			return i
		}
	}
	return len(s)
}

func (p *parser) failed() bool { return len(p.errs) > 0 }

// fail records an error that has no place.
func (p *parser) fail(format string, args ...any) {
	p.report(&Error{Message: fmt.Sprintf(format, args...)})
}

// failAt records an error at an offset of the current text.
func (p *parser) failAt(off int, format string, args ...any) {
	if p.full() {
		return
	}
	line, col := p.place(off)
	p.report(&Error{Line: line, Col: col, Message: fmt.Sprintf(format, args...)})
}

// warnAt records a warning at an offset of the current text.
func (p *parser) warnAt(off int, format string, args ...any) {
	if len(p.warns) >= maxErrors {
		return
	}
	line, col := p.place(off)
	p.warn(&Error{Line: line, Col: col, Message: fmt.Sprintf(format, args...)})
}

// place returns the author's line and column of an offset of the current text.
func (p *parser) place(off int) (line, col int) {
	if p.sourceLines == nil {
		p.sourceLines = indexLines(p.doc.source())
	}
	return p.sourceLines.position(p.doc.origin(off))
}

// full counts an error that there is no room for, before its message is made.
func (p *parser) full() bool {
	if len(p.errs) < maxErrors {
		return false
	}
	p.dropped++
	return true
}

func (p *parser) report(e *Error) {
	if !p.full() {
		p.errs = append(p.errs, p.finish(e))
	}
}

func (p *parser) warn(e *Error) {
	if len(p.warns) < maxErrors {
		p.warns = append(p.warns, p.finish(e))
	}
}

// finish names the file and takes secret values out of the message.
func (p *parser) finish(e *Error) *Error {
	if e.File == "" {
		e.File = p.opt.File
	}
	e.Message, e.Property = p.redact(e.Message), p.clip(e.Property)
	if e.Step = p.redact(e.Step); len(e.Step) > maxID {
		e.Step = clip(e.Step)
	}
	return e
}

func (p *parser) warnings() Warnings {
	slices.SortStableFunc(p.warns, byPlace)
	return p.warns
}

// byPlace orders messages by file, line and column.
func byPlace(a, b *Error) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
}

func (p *parser) err() error {
	errs := Errors(p.errs)
	slices.SortStableFunc(errs, byPlace)
	if p.dropped > 0 {
		errs = append(errs, &Error{File: p.opt.File, Message: fmt.Sprintf("and %d more errors", p.dropped)})
	}
	return errs
}

// aliasSource reads one alias file.
func (p *parser) aliasSource(src string) ([]byte, error) {
	if p.opt.AliasSource == nil {
		return nil, fmt.Errorf("alias files cannot be read here; write the aliases under alias.values")
	}
	data, err := p.opt.AliasSource(src)
	if err != nil {
		return nil, err
	}
	if len(data) > maxSource {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), maxSource)
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}
