package cron

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// maxExpr bounds the length of an expression in bytes.
const maxExpr = 512

// An Error is a mistake in an expression. Col is 1-based and counts bytes of the expression.
type Error struct {
	Col     int
	Field   string // minute, hour, day of month, month, day of week; empty for the whole expression
	Message string
}

// Error returns "column N: field: message".
func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("column %d: %s", e.Col, e.Message)
	}
	return fmt.Sprintf("column %d: %s: %s", e.Col, e.Field, e.Message)
}

// A field is what one of the five fields may hold.
type field struct {
	name     string
	min, max int
	names    []string // of the values from min on
}

var fields = [5]field{
	{name: "minute", min: 0, max: 59},
	{name: "hour", min: 0, max: 23},
	{name: "day of month", min: 1, max: 31},
	{name: "month", min: 1, max: 12, names: []string{"january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"}},
	{name: "day of week", min: 0, max: 7, names: []string{"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"}},
}

// longest holds the most days that each month can have.
var longest = [13]int{0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}

// Parse reads an expression of five fields: minute, hour, day of month, month, day of week. The error
// is an [*Error] that points at the mistake.
func Parse(expr string) (Schedule, error) {
	if len(expr) > maxExpr {
		return Schedule{}, &Error{Col: 1, Message: fmt.Sprintf("the expression has %d bytes, more than %d", len(expr), maxExpr)}
	}
	words, cols := split(expr)
	if err := checkCount(expr, words, cols); err != nil {
		return Schedule{}, err
	}
	s := Schedule{expr: strings.Join(words, " ")}
	var sets [5]uint64
	for i, f := range fields {
		set, err := f.parse(words[i], cols[i])
		if err != nil {
			return Schedule{}, err
		}
		sets[i] = set
	}
	s.minutes, s.hours, s.days, s.months = sets[0], sets[1], sets[2], sets[3]
	s.weekdays = (sets[4] | sets[4]>>7) & 0x7f // 7 is Sunday too
	if !s.possible() {
		return Schedule{}, &Error{Col: cols[2], Field: fields[2].name, Message: fmt.Sprintf("no month of %q has a day %s", words[3], words[2])}
	}
	return s, nil
}

// split returns the words of an expression and their columns.
func split(expr string) (words []string, cols []int) {
	for i := 0; i < len(expr); {
		if expr[i] == ' ' || expr[i] == '\t' {
			i++
			continue
		}
		end := i
		for end < len(expr) && expr[end] != ' ' && expr[end] != '\t' {
			end++
		}
		words, cols = append(words, expr[i:end]), append(cols, i+1)
		i = end
	}
	return words, cols
}

func checkCount(expr string, words []string, cols []int) error {
	switch n := len(words); {
	case n == 0:
		return &Error{Col: 1, Message: `the expression is empty; write five fields, such as "0 2 * * *" for 02:00 every day`}
	case words[0][0] == '@':
		return &Error{Col: cols[0], Message: fmt.Sprintf("%q is not known; write five fields, such as \"0 0 * * *\" for midnight", words[0])}
	case n < 5:
		return &Error{Col: len(expr) + 1, Message: fmt.Sprintf("%d fields where five are needed: minute hour day-of-month month day-of-week", n)}
	case n > 5:
		return &Error{Col: cols[5], Message: fmt.Sprintf("%d fields where five are needed: there are no fields for seconds or years", n)}
	}
	return nil
}

// parse returns the values of a field as a set of bits.
func (f field) parse(word string, col int) (uint64, error) {
	var set uint64
	for item := range strings.SplitSeq(word, ",") {
		values, err := f.item(item, col)
		if err != nil {
			return 0, err
		}
		set |= values
		col += len(item) + 1
	}
	return set, nil
}

// item returns the values of one item of a list: "*", "a", "a-b", each with or without "/step".
func (f field) item(item string, col int) (uint64, error) {
	if item == "" {
		return 0, f.errorf(col, "an item of the list is empty")
	}
	rng, step, stepped := strings.Cut(item, "/")
	by := 1
	if stepped {
		n, err := strconv.Atoi(step)
		if err != nil || n < 1 || n > f.max {
			return 0, f.errorf(col+len(rng)+1, "step %q is not a number from 1 to %d", step, f.max)
		}
		by = n
	}
	from, to, err := f.span(rng, col, stepped, by)
	if err != nil {
		return 0, err
	}
	var set uint64
	for v := from; v <= to; v += by {
		set |= 1 << v
	}
	return set, nil
}

// span returns the first and last value of an item without its step.
func (f field) span(rng string, col int, stepped bool, by int) (from, to int, err error) {
	if rng == "*" {
		return f.min, f.last(), nil
	}
	lo, hi, ranged := strings.Cut(rng, "-")
	if from, err = f.value(lo, col); err != nil {
		return 0, 0, err
	}
	switch {
	case !ranged && !stepped:
		return from, from, nil
	case !ranged && by == 1:
		return 0, 0, f.errorf(col, "%s/1 can be read in two ways; write %s, or %s-%d", lo, lo, lo, f.last())
	case !ranged:
		return from, f.last(), nil
	}
	if to, err = f.value(hi, col+len(lo)+1); err != nil {
		return 0, 0, err
	}
	if to == 0 && from > 0 && f.max == 7 {
		to = 7 // saturday-sunday
	}
	if to < from {
		return 0, 0, f.errorf(col, "the range %s runs backwards; write %s-%d,%d-%s", rng, lo, f.last(), f.min, hi)
	}
	return from, to, nil
}

// last returns the greatest value that is not a second name of another.
func (f field) last() int {
	if f.max == 7 {
		return 6
	}
	return f.max
}

// value reads a number or a name. A name may be cut to three letters or more.
func (f field) value(s string, col int) (int, error) {
	if s == "" {
		return 0, f.errorf(col, "a value is missing")
	}
	if c := s[0]; c >= '0' && c <= '9' {
		n, err := strconv.Atoi(s)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return 0, f.errorf(col, "%q is not a number", s)
		}
		if err != nil || n < f.min || n > f.max {
			return 0, f.errorf(col, "%s is not from %d to %d", s, f.min, f.max)
		}
		return n, nil
	}
	if len(s) >= 3 {
		for i, name := range f.names {
			if strings.HasPrefix(name, strings.ToLower(s)) {
				return f.min + i, nil
			}
		}
	}
	switch {
	case s == "?" || s == "L" || s == "W" || strings.Contains(s, "#"):
		return 0, f.errorf(col, "%q is not part of this syntax; write *, numbers, names, ranges, lists and steps", s)
	case f.names != nil:
		return 0, f.errorf(col, "%q is neither a number from %d to %d nor a name such as %s", s, f.min, f.max, f.names[0][:3])
	}
	return 0, f.errorf(col, "%q is not a number from %d to %d", s, f.min, f.max)
}

func (f field) errorf(col int, format string, args ...any) error {
	return &Error{Col: col, Field: f.name, Message: fmt.Sprintf(format, args...)}
}

// possible reports whether some month of the schedule can have one of its days.
func (s Schedule) possible() bool {
	first := bits.TrailingZeros64(s.days)
	for m := 1; m <= 12; m++ {
		if s.months&(1<<m) != 0 && first <= longest[m] {
			return true
		}
	}
	return false
}
