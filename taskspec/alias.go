package taskspec

import (
	"maps"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// DefaultImageAliases are the names that a cmd step may use for well-known images, and $NAME anywhere.
var DefaultImageAliases = map[string]string{
	"acr":  "mcr.microsoft.com/acr/acr-cli:0.19",
	"az":   "mcr.microsoft.com/acr/azure-cli:2ff604c",
	"bash": "mcr.microsoft.com/acr/bash:2ff604c",
	"curl": "mcr.microsoft.com/acr/curl:2ff604c",
	"cssc": "mcr.microsoft.com/acr/cssc:2ff604c",
}

// runAliases are the run variables that $NAME stands for.
var runAliases = map[string]string{
	"ID":           "{{.Run.ID}}",
	"SharedVolume": "{{.Run.SharedVolume}}",
	"Registry":     "{{.Run.Registry}}",
	"RegistryName": "{{.Run.RegistryName}}",
	"Date":         "{{.Run.Date}}",
	"OS":           "{{.Run.OS}}",
	"Architecture": "{{.Run.Architecture}}",
	"Commit":       "{{.Run.Commit}}",
	"Branch":       "{{.Run.Branch}}",
}

// aliases are what "$NAME" stands for in a document. A nil *aliases means that aliases are off.
type aliases struct {
	own       map[string]string // from alias.values and alias.src
	images    map[string]string
	directive rune
}

// lookup returns what a name stands for: the document's own aliases hide the predefined ones.
func (a *aliases) lookup(name string) (string, bool) {
	if v, ok := a.own[name]; ok {
		return v, true
	}
	if v, ok := a.images[name]; ok {
		return v, true
	}
	v, ok := runAliases[name]
	return v, ok
}

// image returns what the first word of a cmd stands for. That may be any alias: the value of a run
// variable's is the text of a template, which is not executed any more.
func (a *aliases) image(word string) (string, bool) {
	if a == nil {
		return "", false
	}
	return a.lookup(word)
}

// expandAliases cuts the alias block out of the document and replaces aliases in the rest, if the
// document's version turns them on.
func (p *parser) expandAliases() {
	if !p.opt.Encoded && !p.aliasesOn() {
		return
	}
	p.aliases = &aliases{images: p.opt.ImageAliases, directive: '$'}
	if p.aliases.images == nil {
		p.aliases.images = DefaultImageAliases
	}
	if block, rest, ok := cutAliasBlocks(p.doc); ok {
		p.loadAliases(block)
		p.doc = rest
	}
	if !p.failed() {
		p.replaceAliases()
	}
}

// aliasesOn looks for the version in the text, not in the YAML: the first line that begins with
// "version" decides, by plain comparison of strings.
func (p *parser) aliasesOn() bool {
	version, off, ok := findVersion(p.doc.s)
	if !ok {
		if strings.HasPrefix(p.doc.s, "\ufeff") {
			p.warnAt(0, "the file begins with a byte order mark, which turns aliases off; save it as UTF-8 without one")
		}
		return false
	}
	if version < "v1.1.0" && strings.EqualFold(version, "v1.1.0") {
		p.warnAt(off, "version %q turns aliases off; write v1.1.0", p.clip(version))
	}
	return version >= "v1.1.0"
}

// findVersion returns the value of the first line that looks like a top-level version.
func findVersion(s string) (version string, off int, ok bool) {
	for off := 0; off < len(s); {
		line := s[off : off+lineLen(s[off:])]
		if strings.HasPrefix(strings.TrimLeft(line, `"'`), "version") {
			key, value, found := strings.Cut(line, ":")
			if found && strings.Trim(strings.TrimSpace(key), `"'`) == "version" {
				return strings.Trim(strings.TrimSpace(value), `"'`), off, true
			}
		}
		off += len(line)
	}
	return "", 0, false
}

// cutAliasBlocks separates the lines of alias blocks from the rest. A block begins with "alias:" in the
// first column and ends before the next line that has no blank there and a colon anywhere. Directly
// below a block, "alias:" is such a line and begins no other.
func cutAliasBlocks(t *text) (block, rest *text, found bool) {
	if !strings.Contains(t.s, "alias") {
		return nil, t, false
	}
	var in, out rewriter
	inside := false
	for off := 0; off < len(t.s); {
		line := t.s[off : off+lineLen(t.s[off:])]
		if isTopLevel(line) {
			inside = !inside && isAliasKey(line)
			found = found || inside
		}
		if inside {
			in.copy(line, off)
		} else {
			out.copy(line, off)
		}
		off += len(line)
	}
	if !found {
		return nil, t, false
	}
	return in.text(t), out.text(t), true
}

// isTopLevel reports whether a line ends an alias block.
func isTopLevel(line string) bool {
	return line != "" && strings.IndexByte(" \t\f\r\n:", line[0]) < 0 && strings.Contains(line, ":")
}

// isAliasKey reports whether a line begins an alias block.
func isAliasKey(line string) bool {
	rest, ok := strings.CutPrefix(line, "alias")
	return ok && strings.HasPrefix(strings.TrimLeft(rest, " \t\f\r"), ":")
}

// loadAliases renders and reads the alias block.
func (p *parser) loadAliases(text *text) {
	block := newParser(nil, p.opt)
	block.doc = text
	block.values = p.values
	block.executeTemplate()
	p.values = block.values
	if !block.failed() {
		if root := block.parseYAML(); root != nil {
			block.aliases = p.aliases
			block.readAliases(root)
		}
	}
	p.errs = append(p.errs, block.errs...)
	p.warns = append(p.warns, block.warns...)
}

// An aliasNode has the aliases of a document by where they come from.
type aliasNode struct{ inline, files map[string]string }

// readAliases fills p.aliases from the alias properties of a document.
func (p *parser) readAliases(root *yaml.Node) {
	a := aliasNode{inline: map[string]string{}, files: map[string]string{}}
	for _, f := range p.fields(place{}, "", root) {
		if f.name == "alias" {
			aliasTable.decode(p, &a, place{}, f.value)
		}
	}
	maps.Copy(a.files, a.inline)
	p.aliases.own = a.files
}

// readAliasFiles reads the files of alias.src.
func (p *parser) readAliasFiles(a *aliasNode, n *yaml.Node) {
	items := p.texts(place{}, "alias.src", n)
	if len(items) > maxSources {
		p.errorf(place{node: items[maxSources]}, "alias.src", "there are more than %d files", maxSources)
		return
	}
	for _, item := range items {
		p.readAliasFile(a.files, item)
	}
}

func (p *parser) readDirective(n *yaml.Node) {
	s := p.str(place{}, "alias.directive", n)
	r, size := utf8.DecodeRuneInString(s)
	switch {
	case s == "":
	case size != len(s):
		p.errorf(place{node: n}, "alias.directive", "%q has more than one character; the $ directive can only be replaced by a single one", p.clip(s))
	case r < utf8.RuneSelf && (isAlpha(byte(r)) || isDigit(byte(r))):
		p.errorf(place{node: n}, "alias.directive", "%q is alphanumeric; the directive cannot be a letter or digit", s)
	default:
		p.aliases.directive = r
	}
}

// readAliasFile adds the aliases of one entry of alias.src; later entries override earlier ones.
func (p *parser) readAliasFile(into map[string]string, n *yaml.Node) {
	src := p.str(place{}, "alias.src", n)
	if src == "" {
		return
	}
	data, err := p.aliasSource(src)
	if err != nil {
		p.errorf(place{node: n}, "alias.src", "%q: %v", p.clip(src), err)
		return
	}
	file := newParser(data, &Options{File: src})
	if !utf8.Valid(data) {
		p.errorf(place{node: n}, "alias.src", "%q is not valid UTF-8", p.clip(src))
		return
	}
	if root := file.parseYAML(); root != nil {
		file.readAliasMap(into, "alias file", root)
	}
	p.errs = append(p.errs, file.errs...)
}

// readAliasMap reads a flat map of names to texts.
func (p *parser) readAliasMap(into map[string]string, property string, n *yaml.Node) {
	for _, f := range p.fields(place{}, property, n) {
		if !isAliasName(f.name) {
			p.errorf(place{node: f.key}, property, "%q is no alias name; alias key names only support alphanumeric characters", p.clip(f.name))
			continue
		}
		if f.value.Kind != yaml.ScalarNode {
			p.errorf(place{node: f.value}, property, "%s: %s where a text is needed; aliases are a flat map of names to texts", p.clip(f.name), p.describe(f.value))
			continue
		}
		into[f.name] = p.str(place{}, property, f.value)
	}
}

func isAliasName(s string) bool {
	for i := range len(s) {
		if !isAlpha(s[i]) && !isDigit(s[i]) {
			return false
		}
	}
	return s != ""
}
