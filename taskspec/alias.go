package taskspec

import (
	"maps"
	"strings"
	"unicode"
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

// image returns the image that the first word of a cmd stands for.
func (a *aliases) image(word string) (string, bool) {
	if a == nil {
		return "", false
	}
	if v, ok := a.own[word]; ok {
		return v, true
	}
	v, ok := a.images[word]
	return v, ok
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
	if start, end, ok := findAliasBlock(p.doc.s); ok {
		p.loadAliases(start, end)
		var w rewriter
		w.copy(p.doc.s[:start], 0)
		w.copy(p.doc.s[end:], end)
		p.doc = w.text(p.doc)
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

// findAliasBlock returns the range of the lines of the alias block: from "alias:" in the first column
// up to the next line that looks like a top-level key.
func findAliasBlock(s string) (start, end int, ok bool) {
	for off := 0; off < len(s); off += lineLen(s[off:]) {
		key, isKey := topLevelKey(s[off:])
		switch {
		case !isKey:
		case ok:
			return start, off, true
		case key == "alias":
			start, ok = off, true
		}
	}
	return start, len(s), ok
}

// topLevelKey returns the key that stands in the first column of the line that s begins with.
func topLevelKey(s string) (string, bool) {
	if s == "" || strings.IndexByte(" \t\r\n#:-", s[0]) >= 0 {
		return "", false
	}
	end := strings.IndexAny(s, " \t\r\n:")
	if end < 0 {
		return "", false
	}
	return s[:end], strings.HasPrefix(strings.TrimLeft(s[end:], " \t"), ":")
}

// loadAliases renders and reads the alias block.
func (p *parser) loadAliases(start, end int) {
	outer := p.doc
	var w rewriter
	w.copy(outer.s[start:end], start)
	block := newParser(nil, p.opt)
	block.doc = w.text(outer)
	block.values = p.values
	block.executeTemplate()
	p.values = block.values
	if !block.failed() {
		if root := block.parseYAML(); root != nil {
			block.aliases = p.aliases
			for _, f := range block.fields(place{}, "", root) {
				if f.name == "alias" {
					block.readAliases(f.value)
				}
			}
		}
	}
	p.errs = append(p.errs, block.errs...)
	p.warns = append(p.warns, block.warns...)
}

// An aliasNode has the aliases of a document by where they come from.
type aliasNode struct{ inline, files map[string]string }

// readAliases fills p.aliases from the alias property.
func (p *parser) readAliases(n *yaml.Node) {
	a := aliasNode{inline: map[string]string{}, files: map[string]string{}}
	aliasTable.decode(p, &a, place{}, n)
	maps.Copy(a.files, a.inline)
	p.aliases.own = a.files
}

// readAliasFiles reads the files of alias.src.
func (p *parser) readAliasFiles(a *aliasNode, n *yaml.Node) {
	items := p.items(place{}, "alias.src", n)
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
	case unicode.IsLetter(r) || unicode.IsDigit(r):
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
