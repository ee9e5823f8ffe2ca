package taskspec

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
)

// renderTemplate executes the document as a template. A document that mentions secrets is executed
// once without them to learn which it declares.
func (p *parser) renderTemplate() {
	if !strings.Contains(p.doc.s, "secrets") {
		p.executeTemplate()
		return
	}
	first := newParser(nil, p.opt)
	first.doc = p.doc
	first.values = p.values
	first.executeTemplate()
	p.values = first.values
	if first.failed() {
		p.errs = append(p.errs, first.errs...)
		return
	}
	p.resolveSecrets(first)
	if !p.failed() {
		p.executeTemplate()
	}
}

const templateName = "task"

// executeTemplate replaces p.doc by the result of executing it as a template.
func (p *parser) executeTemplate() {
	if !strings.Contains(p.doc.s, "{{") || !p.checkCode() {
		return
	}
	data := p.templateData()
	if p.failed() {
		return
	}
	if !p.noShortcut && p.substitute(data) {
		p.doc = dropNoValue(p.doc)
		return
	}
	trees, err := parse.Parse(templateName, p.doc.s, "", "", templateFuncs(), builtinFuncs)
	if err != nil {
		p.templateError(err)
		return
	}
	out := &tracer{max: maxRendered, nodes: map[*byte]int{}}
	tmpl, err := prepare(trees, out, p.opt.Run.Date)
	if err != nil {
		p.templateError(err)
		return
	}
	p.warnUndefined(trees[templateName], data)
	if err := tmpl.Execute(out, data); err != nil {
		p.templateError(err)
		return
	}
	p.doc = dropNoValue(out.w.text(p.doc))
}

// checkCode reports whether the document's actions are few and short enough to be parsed.
func (p *parser) checkCode() bool {
	actions, code := 0, 0
	for off := 0; ; {
		i := strings.Index(p.doc.s[off:], "{{")
		if i < 0 {
			return true
		}
		off += i
		n := strings.Index(p.doc.s[off:], "}}")
		if n < 0 {
			n = len(p.doc.s) - off
		}
		actions, code = actions+1, code+n
		switch {
		case actions > maxActions:
			p.failAt(off, "the document has more than %d template actions", maxActions)
			return false
		case code > maxCode:
			p.failAt(off, "the document has more than %d bytes of template actions", maxCode)
			return false
		}
		off += n
	}
}

// noValue is what text/template prints for a missing value.
const noValue = "<no value>"

// dropNoValue deletes what stands for missing values, even where the author wrote it.
func dropNoValue(t *text) *text {
	if !strings.Contains(t.s, noValue) {
		return t
	}
	var w rewriter
	pos := 0
	for {
		i := strings.Index(t.s[pos:], noValue)
		if i < 0 {
			break
		}
		w.copy(t.s[pos:pos+i], pos)
		pos += i + len(noValue)
	}
	w.copy(t.s[pos:], pos)
	return w.text(t)
}

// templateData returns the root object of templates.
func (p *parser) templateData() map[string]any {
	if p.values == nil {
		p.values = p.loadValues()
	}
	run := p.opt.Run.fields()
	secrets := make(map[string]any, len(p.secrets))
	for id, v := range p.secrets {
		secrets[id] = v
	}
	data := map[string]any{
		"Run":     run,
		"Build":   map[string]any{"ID": p.opt.Run.ID},
		"Values":  p.values,
		"Secrets": secrets,
	}
	if strings.Contains(p.doc.s, "JSON") {
		data["RunJSON"] = shellJSON(run)
		data["ValuesJSON"] = shellJSON(p.values)
	}
	return data
}

// fields returns the run's facts by the names that templates use.
func (r *RunVars) fields() map[string]any {
	name, _, _ := strings.Cut(r.Registry, ".")
	date := ""
	if !r.Date.IsZero() {
		date = r.Date.UTC().Format("20060102-150405z")
	}
	return map[string]any{
		"ID": r.ID, "Commit": r.Commit, "Repository": r.Repository, "Branch": r.Branch, "GitTag": r.GitTag,
		"TriggeredBy": r.TriggeredBy, "Registry": r.Registry, "RegistryName": name, "Date": date,
		"SharedVolume": r.SharedVolume, "OS": r.OS, "OSVersion": r.OSVersion, "Architecture": r.Architecture,
		"TaskName": r.TaskName,
	}
}

// shellJSON returns v as JSON, as one word of a shell.
func shellJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return "'{}'"
	}
	return "'" + strings.ReplaceAll(string(data), "'", `'"'"'`) + "'"
}

// A tracer collects a template's output and where each part came from: it recognises the text nodes
// of the template by the address of their bytes; everything else was made by the action after the
// last of them.
type tracer struct {
	w     rewriter
	nodes map[*byte]int // first byte of a text node to its offset in the template
	last  int           // offset in the template up to which text was copied
	max   int
}

var errTooLong = errors.New("the rendered document has more than " + strconv.Itoa(maxRendered) + " bytes")

// Write takes the next part of the output.
func (t *tracer) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if t.w.b.Len()+len(b) > t.max {
		return 0, errTooLong
	}
	if off, ok := t.nodes[&b[0]]; ok {
		t.w.copy(string(b), off)
		t.last = off + len(b)
	} else {
		t.w.insert(string(b), t.last)
	}
	return len(b), nil
}

// templateError reports an error of text/template at the place it names: "template: task:LINE:COL: ...".
func (p *parser) templateError(err error) {
	msg := strings.TrimPrefix(err.Error(), "template: ")
	var exec template.ExecError
	if errors.Is(err, errTooLong) {
		p.fail("%v", errTooLong)
		return
	}
	rest, ok := strings.CutPrefix(msg, templateName+":")
	if !ok {
		p.fail("template: %s", msg)
		return
	}
	num, rest, _ := strings.Cut(rest, ":")
	line, _ := strconv.Atoi(num)
	lines := indexLines(p.doc.s)
	off := lines.offset(line, 1)
	if errors.As(err, &exec) {
		num, after, _ := strings.Cut(rest, ":")
		if col, err := strconv.Atoi(num); err == nil {
			off, rest = min(off+col, len(p.doc.s)), after
		}
	} else if i := strings.Index(p.doc.s[off:off+lineLen(p.doc.s[off:])], "{{"); i >= 0 {
		off += i
	}
	rest = strings.TrimSpace(rest)
	if what, start, ok := strings.Cut(rest, " started at "+templateName+":"); ok {
		if n, err := strconv.Atoi(start); err == nil {
			off, rest = lines.offset(n, 1), what
			off += max(0, strings.Index(p.doc.s[off:off+lineLen(p.doc.s[off:])], "{{"))
		}
	}
	for _, limit := range []error{errTooMuchWork, errTooDeep} {
		if errors.Is(err, limit) {
			rest = limit.Error()
		}
	}
	p.failAt(off, "template: %s", explainTemplate(rest))
}

// explainTemplate turns the messages of text/template that authors meet into advice.
func explainTemplate(msg string) string {
	msg = strings.TrimPrefix(msg, `executing "`+templateName+`" at `)
	if at, what, ok := strings.Cut(msg, ": nil pointer evaluating interface {}."); ok {
		at = strings.Trim(at, "<>")
		parent := strings.TrimSuffix(at, "."+what)
		return at + " cannot be read: " + parent + " is not defined"
	}
	if rest, ok := strings.CutPrefix(msg, `function "`); ok {
		name, _, _ := strings.Cut(rest, `"`)
		if why, ok := refusedFuncs[name]; ok {
			return "function " + strconv.Quote(name) + " is not available: " + why
		}
		return "function " + strconv.Quote(name) + " does not exist" + didYouMean(name, funcNames())
	}
	return msg
}
