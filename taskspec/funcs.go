package taskspec

import (
	"encoding/base64"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/Masterminds/sprig/v3"
)

// Templates have the functions of text/template and sprig, without those that would make a document
// depend on more than its arguments or that cost more than rendering may. Every call is charged to the
// document's budget.

const (
	whyHost   = "a task cannot read the server it is rendered on; pass values with --set and read them from .Values"
	whyRandom = "a task must render the same way every time; .Run.ID is unique to a run"
	whyCrypto = "keys, certificates and password hashes are not made while a task is rendered; make them in a step or pass them with --set"
)

// refusedFuncs are sprig's and text/template's functions that templates do not have, and why.
var refusedFuncs = map[string]string{
	"env": whyHost, "expandenv": whyHost, "getHostByName": whyHost,
	"randAlphaNum": whyRandom, "randAlpha": whyRandom, "randAscii": whyRandom, "randNumeric": whyRandom,
	"randBytes": whyRandom, "randInt": whyRandom, "shuffle": whyRandom, "uuidv4": whyRandom, "encryptAES": whyRandom,
	"bcrypt": whyCrypto, "htpasswd": whyCrypto, "derivePassword": whyCrypto, "genPrivateKey": whyCrypto,
	"buildCustomCert": whyCrypto, "genCA": whyCrypto, "genCAWithKey": whyCrypto, "genSelfSignedCert": whyCrypto,
	"genSelfSignedCertWithKey": whyCrypto, "genSignedCert": whyCrypto, "genSignedCertWithKey": whyCrypto,
	"call": "a template has no functions to call",
}

// builtinFuncs are the functions of text/template that are cheap whatever they are given. They are
// named for the parser only.
var builtinFuncs = map[string]any{
	"and": 0, "or": 0, "not": 0, "index": 0, "slice": 0, "len": 0, "eq": 0, "ne": 0, "lt": 0, "le": 0, "gt": 0, "ge": 0,
}

// templateFuncs returns all other functions of templates by name. The time functions are those of the
// zero time; prepare replaces them.
var templateFuncs = sync.OnceValue(func() map[string]any {
	funcs := map[string]any(sprig.TxtFuncMap())
	for name := range refusedFuncs {
		delete(funcs, name)
	}
	maps.Copy(funcs, timeFuncs(time.Time{}))
	maps.Copy(funcs, map[string]any{
		"b64enc": b64enc, "print": fmt.Sprint, "println": fmt.Sprintln, "printf": fmt.Sprintf,
		"html": htmlEscape, "js": jsEscape, "urlquery": urlEscape,
	})
	return funcs
})

// funcNames returns the names of all functions, sorted.
func funcNames() []string {
	names := maps.Clone(templateFuncs())
	maps.Copy(names, builtinFuncs)
	return keys(names)
}

// b64enc encodes anything as base64; an undefined value is the empty text.
func b64enc(v any) string {
	if v == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(fmt.Sprint(v)))
}

// timeFuncs returns the functions that would read the clock or the local time zone: for them it is
// always now, the start of the run, and the zone is UTC.
func timeFuncs(now time.Time) map[string]any {
	now = now.UTC()
	format := func(layout string, v any) string { return toTime(v, now).Format(layout) }
	inZone := func(layout string, v any, zone string) (string, error) {
		switch zone {
		case "", "UTC", "GMT", "Local":
			return format(layout, v), nil
		}
		return "", fmt.Errorf("time zone %q is not known here; only UTC is", clip(zone))
	}
	parse := func(layout, s string) (time.Time, error) { return time.ParseInLocation(layout, s, time.UTC) }
	return map[string]any{
		"now":            func() time.Time { return now },
		"ago":            func(v any) string { return now.Sub(toTime(v, now)).Round(time.Second).String() },
		"date":           format,
		"htmlDate":       func(v any) string { return format(time.DateOnly, v) },
		"dateInZone":     inZone,
		"date_in_zone":   inZone,
		"htmlDateInZone": func(v any, zone string) (string, error) { return inZone(time.DateOnly, v, zone) },
		"toDate":         func(layout, s string) time.Time { t, _ := parse(layout, s); return t },
		"mustToDate":     parse,
		"durationRound":  func(v any) string { return roundDuration(v, now) },
	}
}

// toTime reads a time or the seconds since 1970; anything else is now.
func toTime(v any, now time.Time) time.Time {
	switch v := v.(type) {
	case time.Time:
		return v.UTC()
	case *time.Time:
		if v != nil {
			return v.UTC()
		}
	case int64:
		return time.Unix(v, 0).UTC()
	case int:
		return time.Unix(int64(v), 0).UTC()
	case int32:
		return time.Unix(int64(v), 0).UTC()
	}
	return now
}

// roundDuration shortens a duration to its largest unit: 2h, 3d, 4mo.
func roundDuration(v any, now time.Time) string {
	var d time.Duration
	switch v := v.(type) {
	case string:
		d, _ = time.ParseDuration(v)
	case int64:
		d = time.Duration(v)
	case time.Time:
		d = now.Sub(v)
	case time.Duration:
		d = v
	}
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	const day = 24 * time.Hour
	for _, u := range []struct {
		size time.Duration
		name string
	}{{365 * day, "y"}, {30 * day, "mo"}, {day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d >= u.size {
			return fmt.Sprintf("%s%d%s", sign, d/u.size, u.name)
		}
	}
	return "0s"
}

// A costFunc foretells the work of a call and the size of its result from its arguments, where these
// are more than proportional to their size.
type costFunc func(args []reflect.Value) float64

// costs has the functions whose result can be much larger than their arguments, or slow to compute.
var costs = map[string]costFunc{
	"repeat":     func(a []reflect.Value) float64 { return num(a, 0) * float64(len(str(a, 1))) },
	"until":      func(a []reflect.Value) float64 { return 16 * abs(num(a, 0)) },
	"untilStep":  func(a []reflect.Value) float64 { return 16 * steps(num(a, 0), num(a, 1), num(a, 2)) },
	"seq":        seqCost,
	"indent":     indentCost,
	"nindent":    indentCost,
	"replace":    func(a []reflect.Value) float64 { return float64(strings.Count(str(a, 2), str(a, 0)) * len(str(a, 1))) },
	"wrapWith":   func(a []reflect.Value) float64 { return float64(len(str(a, 1)) * len(str(a, 2))) },
	"join":       func(a []reflect.Value) float64 { return float64(len(str(a, 0)) * length(a, 1)) },
	"split":      func(a []reflect.Value) float64 { return 128 * float64(strings.Count(str(a, 1), str(a, 0))) },
	"splitList":  func(a []reflect.Value) float64 { return 16 * float64(strings.Count(str(a, 1), str(a, 0))) },
	"splitn":     func(a []reflect.Value) float64 { return 128 * float64(strings.Count(str(a, 2), str(a, 0))) },
	"printf":     printfCost,
	"uniq":       squareCost,
	"mustUniq":   squareCost,
	"regexMatch": regexCost, "mustRegexMatch": regexCost, "regexFind": regexCost, "mustRegexFind": regexCost,
	"regexFindAll": regexCost, "mustRegexFindAll": regexCost, "regexSplit": regexCost, "mustRegexSplit": regexCost,
	"regexReplaceAll": regexReplaceCost, "mustRegexReplaceAll": regexReplaceCost,
	"regexReplaceAllLiteral": regexReplaceCost, "mustRegexReplaceAllLiteral": regexReplaceCost,
	"without": withoutCost, "mustWithout": withoutCost,
	"semver": scale(64), "semverCompare": scale(64), "deepCopy": scale(8), "mustDeepCopy": scale(8),
	"fromJson": scale(16), "mustFromJson": scale(16), "toPrettyJson": scale(8), "mustToPrettyJson": scale(8),
}
