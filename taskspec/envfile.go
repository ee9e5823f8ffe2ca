package taskspec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxEnvFiles is how many files a step may name with --env-file.
const maxEnvFiles = 16

// ParseEnvFile understands a file of --env-file as docker does: lines of NAME=VALUE, the value as it is, to the
// end of the line; a NAME alone takes the value that env, of NAME=VALUE entries, has for it, and is left out if
// it has none; empty lines and those that begin with # are skipped. An error names the file and the line, and
// shows no value.
func ParseEnvFile(name, content string, env []string) ([]string, error) {
	var list []string
	var errs []error
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(content, "\ufeff")) {
		n++
		line = strings.TrimLeftFunc(strings.TrimRight(line, "\r\n"), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		entry, why := envLine(line, env)
		switch {
		case why != "" && len(errs) < maxErrors:
			errs = append(errs, fmt.Errorf("%s:%d: %s", name, n, why))
		case entry != "":
			list = append(list, entry)
		}
		if len(list) > maxEnv {
			return nil, fmt.Errorf("%s:%d: a file has at most %d variables", name, n, maxEnv)
		}
	}
	return list, errors.Join(errs...)
}

// envLine returns the entry that a line makes, empty for none, or what is wrong with it.
func envLine(line string, env []string) (entry, why string) {
	key, _, has := strings.Cut(line, "=")
	switch {
	case !utf8.ValidString(line) || strings.Contains(line, "\x00"):
		return "", "the line is not UTF-8 text"
	case key == "":
		return "", "there is no name before the ="
	case !has && strings.ContainsFunc(key, unicode.IsSpace):
		return "", "there is a blank and no =; write NAME=VALUE"
	case strings.ContainsFunc(key, unicode.IsSpace):
		return "", fmt.Sprintf("the name %q has a blank; write NAME=VALUE", clip(key))
	case has:
		return line, ""
	}
	for _, e := range slices.Backward(env) {
		if strings.HasPrefix(e, key+"=") {
			return e, ""
		}
	}
	return "", ""
}
