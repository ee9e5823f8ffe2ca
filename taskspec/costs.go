package taskspec

import (
	"fmt"
	"math"
	"net/url"
	"reflect"
	"strings"
	"text/template"
)

// num returns an integer argument.
func num(args []reflect.Value, i int) float64 {
	if i >= len(args) {
		return 0
	}
	switch v := inner(args[i]); {
	case v.CanInt():
		return float64(v.Int())
	case v.CanFloat():
		return v.Float()
	}
	return 0
}

// str returns a text argument.
func str(args []reflect.Value, i int) string {
	if i < len(args) {
		if v := inner(args[i]); v.Kind() == reflect.String {
			return v.String()
		}
	}
	return ""
}

// length returns the number of elements of a list argument.
func length(args []reflect.Value, i int) int {
	if i < len(args) {
		if v := inner(args[i]); v.Kind() == reflect.Slice {
			return v.Len()
		}
	}
	return 0
}

// inner returns what an interface holds.
func inner(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

func abs(f float64) float64 { return math.Abs(f) }

// steps returns how many numbers there are from start to stop.
func steps(start, stop, step float64) float64 {
	if step == 0 {
		return 0
	}
	return abs((stop - start) / step)
}

// seqCost is that of seq END, seq START END and seq START STEP END.
func seqCost(args []reflect.Value) float64 {
	if len(args) != 1 { // the variadic arguments are one slice
		return 0
	}
	at := func(i int) float64 { return float64(args[0].Index(i).Int()) }
	switch args[0].Len() {
	case 1:
		return 32 * abs(at(0))
	case 2:
		return 32 * abs(at(1)-at(0))
	case 3:
		return 32 * steps(at(0), at(2), at(1))
	}
	return 0
}

func indentCost(args []reflect.Value) float64 {
	return max(0, num(args, 0)) * float64(1+strings.Count(str(args, 1), "\n"))
}

// printfCost adds up the widths in the format and counts the arguments once for each verb.
func printfCost(args []reflect.Value) float64 {
	format := str(args, 0)
	width, verbs := 0.0, 0
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		verbs++
		for i++; i < len(format) && strings.IndexByte("+-# 0123456789.[]*", format[i]) >= 0; i++ {
			n := 0
			for ; i < len(format) && isDigit(format[i]) && n < 1e7; i++ {
				n = 10*n + int(format[i]-'0')
			}
			width += float64(n)
			if i == len(format) {
				break
			}
			if format[i] == '*' {
				width += 1e6 // as much as fmt would pad
			}
			if strings.IndexByte("+-# .[]*", format[i]) < 0 {
				i--
				break
			}
		}
	}
	return width + float64(verbs)*size(args)
}

func squareCost(args []reflect.Value) float64 {
	return float64(length(args, 0)) * size(args)
}

// withoutCost is that of comparing every element of a list with every further argument.
func withoutCost(args []reflect.Value) float64 {
	return float64(1+length(args, 0)) * size(args)
}

// regexCost estimates the work of a match: text times program, in which a counted repetition is unrolled.
func regexCost(args []reflect.Value) float64 {
	re := str(args, 0)
	if len(re) > 1024 {
		return math.Inf(1)
	}
	program, n := float64(len(re)), 0
	for i := range len(re) {
		if isDigit(re[i]) {
			n = min(10*n+int(re[i]-'0'), 1000)
			continue
		}
		program += 16 * float64(n) // each character of a counted group is repeated
		n = 0
	}
	return 128*program + 8*(8+program)*float64(len(str(args, 1)))
}

func regexReplaceCost(args []reflect.Value) float64 {
	return regexCost(args) + 2*float64(1+len(str(args, 1)))*float64(len(str(args, 2)))
}

func scale(n float64) costFunc {
	return func(args []reflect.Value) float64 { return n * size(args) }
}

// size returns roughly how many bytes values hold, an upper limit for what is very large or deep.
func size(values []reflect.Value) float64 {
	m := measure{left: maxWork}
	for _, v := range values {
		m.add(v, 0)
	}
	return maxWork - m.left
}

// A measure adds up the size of values, what is shared as often as it is reached.
type measure struct {
	left float64
	deep bool // something is nested deeper than maxDepth, perhaps in itself
}

func (m *measure) add(v reflect.Value, depth int) {
	if depth > maxDepth {
		m.deep = true
		return
	}
	m.left -= 32
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		m.add(v.Elem(), depth+1)
	case reflect.String:
		m.left -= float64(v.Len())
	case reflect.Slice, reflect.Array:
		if k := v.Type().Elem().Kind(); k <= reflect.Complex128 {
			m.left -= 8 * float64(v.Len())
			return
		}
		for i := 0; i < v.Len() && m.left > 0 && !m.deep; i++ {
			m.left -= 8
			m.add(v.Index(i), depth+1)
		}
	case reflect.Map:
		for it := v.MapRange(); m.left > 0 && !m.deep && it.Next(); {
			m.left -= 32
			m.add(it.Key(), depth+1)
			m.add(it.Value(), depth+1)
		}
	}
}

// The escaping functions of text/template take any values, like print.

func htmlEscape(args ...any) string { return template.HTMLEscapeString(sprint(args)) }
func jsEscape(args ...any) string   { return template.JSEscapeString(sprint(args)) }
func urlEscape(args ...any) string  { return url.QueryEscape(sprint(args)) }

func sprint(args []any) string {
	if len(args) == 1 {
		if s, ok := args[0].(string); ok {
			return s
		}
	}
	return fmt.Sprint(args...)
}
