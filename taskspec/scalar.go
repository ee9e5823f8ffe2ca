package taskspec

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// str decodes a string: any scalar, as written.
func (p *parser) str(at place, property string, n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		p.errorf(place{at.step, n}, property, "%s where a text is needed", p.describe(n))
		return ""
	}
	if isNull(n) {
		return ""
	}
	return n.Value
}

// boolean decodes a YAML 1.1 boolean.
func (p *parser) boolean(at place, property string, n *yaml.Node) bool {
	if isNull(n) {
		return false
	}
	if plain(n) {
		if v, ok := yamlBool(n.Value); ok {
			return v
		}
	}
	p.errorf(place{at.step, n}, property, "%s where true or false is needed", p.describe(n))
	return false
}

// yamlBool resolves the booleans of YAML 1.1.
func yamlBool(s string) (v, ok bool) {
	switch s {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE":
		return true, true
	case "n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE":
		return false, true
	}
	return false, false
}

// integer decodes a YAML 1.1 integer; a float loses its fraction.
func (p *parser) integer(at place, property string, n *yaml.Node) int {
	if isNull(n) {
		return 0
	}
	if plain(n) {
		if v, ok := yamlInt(n.Value); ok {
			return v
		}
	}
	p.errorf(place{at.step, n}, property, "%s where a whole number is needed", p.describe(n))
	return 0
}

var yamlFloat = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)

// yamlInt resolves the integers of YAML 1.1: decimal, 0x, 0b, and octal with a leading 0.
func yamlInt(s string) (int, bool) {
	digits := strings.ReplaceAll(s, "_", "")
	if v, err := strconv.ParseInt(digits, 0, 0); err == nil {
		return int(v), true
	}
	if !yamlFloat.MatchString(digits) {
		return 0, false
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int(f), true
}

// checkIntegers reports anything but a list of integers.
func (p *parser) checkIntegers(at place, property string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		p.errorf(place{at.step, n}, property, "a list is needed, even for a single entry; write %s: [%s]", property, p.clip(n.Value))
		return
	}
	for _, item := range p.items(at, property, n) {
		p.integer(at, property, item)
	}
}

// plain reports whether n is a scalar without quotes, block style or explicit tag.
func plain(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Style == 0 }

// isNull reports whether n is absent, empty or a null.
func isNull(n *yaml.Node) bool {
	if n == nil || n.Kind == 0 {
		return true
	}
	if !plain(n) {
		return false
	}
	switch n.Value {
	case "", "~", "null", "Null", "NULL":
		return true
	}
	return false
}
