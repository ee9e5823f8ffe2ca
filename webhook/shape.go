package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// A shape tells how to decode a JSON value into a Go value of one type: like encoding/json, except that
// keys match exactly and that what the type has no place for is skipped without being validated.
//
// Nine tenths of what a forge sends are links that nobody reads. encoding/json looks at each byte of
// them twice and with care, which took longer than all else that is done about a delivery.
type shape struct {
	kind   reflect.Kind // String, Bool, Int64, Struct, Slice, Pointer; Invalid is left to encoding/json
	fields map[string]shapeField
	elem   *shape // of a slice or pointer
}

type shapeField struct {
	index int
	shape *shape
}

// shapeOf returns the shape of T. Fields of structs are named by their tags; recursive types have no
// shape.
func shapeOf[T any]() *shape { return shapeOfType(reflect.TypeFor[T]()) }

func shapeOfType(t reflect.Type) *shape {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) || t == reflect.TypeFor[json.Number]() {
		return &shape{}
	}
	s := &shape{kind: t.Kind()}
	switch s.kind {
	case reflect.String, reflect.Bool, reflect.Int64:
	case reflect.Int:
		s.kind = reflect.Int64
	case reflect.Pointer, reflect.Slice:
		s.elem = shapeOfType(t.Elem())
	case reflect.Struct:
		s.fields = make(map[string]shapeField, t.NumField())
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			s.fields[name] = shapeField{i, shapeOfType(t.Field(i).Type)}
		}
	default:
		s.kind = reflect.Invalid
	}
	return s
}

// decode decodes body into what v points to, whose shape is s.
func decode(body []byte, s *shape, v any) error {
	p := newParser(body)
	p.value(s, reflect.ValueOf(v).Elem())
	if p.err == nil {
		p.end()
	}
	if p.err != nil {
		return fmt.Errorf("body: byte %d: %w", p.pos, p.err)
	}
	return nil
}

// value decodes the value that begins here. It recurses as deep as the shape.
func (p *parser) value(s *shape, v reflect.Value) {
	c := p.next()
	if p.err != nil {
		return
	}
	if c == 'n' && s.kind != reflect.Invalid {
		p.literal("null")
		if s.kind == reflect.Pointer || s.kind == reflect.Slice {
			v.SetZero()
		}
		return
	}
	switch s.kind {
	case reflect.Struct:
		p.object(s, v)
	case reflect.Slice:
		p.array(s, v)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		p.value(s.elem, v.Elem())
	case reflect.String:
		v.SetString(p.text())
	case reflect.Bool:
		v.SetBool(c == 't')
		if c == 't' {
			p.literal("true")
		} else {
			p.literal("false")
		}
	case reflect.Int64:
		p.number(v)
	default:
		p.other(v)
	}
}

func (p *parser) object(s *shape, v reflect.Value) {
	if !p.open('{') {
		return
	}
	for more := !p.close('}'); more && p.err == nil; more = p.comma('}') {
		if p.next() != '"' {
			p.fail(errSyntax)
			return
		}
		from := p.pos
		p.skipString()
		key := p.src[from:p.pos]
		if p.err != nil || p.next() != ':' {
			p.fail(errSyntax)
			return
		}
		p.pos++
		if f, ok := s.fields[string(key[1:len(key)-1])]; ok {
			p.value(f.shape, v.Field(f.index))
		} else {
			p.next()
			p.skip()
		}
	}
}

func (p *parser) array(s *shape, v reflect.Value) {
	if !p.open('[') {
		return
	}
	if v.SetLen(0); v.IsNil() {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0)) // empty is not absent
	}
	for more := !p.close(']'); more && p.err == nil; more = p.comma(']') {
		n := v.Len()
		v.Grow(1)
		v.SetLen(n + 1)
		v.Index(n).SetZero()
		p.value(s.elem, v.Index(n))
	}
}

func (p *parser) number(v reflect.Value) {
	from := p.pos
	p.skip()
	if p.err != nil {
		return
	}
	digits := bytes.TrimPrefix(p.src[from:p.pos], []byte("-"))
	n, err := strconv.ParseInt(string(p.src[from:p.pos]), 10, 64)
	if err != nil || digits[0] == '+' || digits[0] == '0' && len(digits) > 1 {
		p.fail(errType)
		return
	}
	v.SetInt(n)
}

// other leaves a value to encoding/json.
func (p *parser) other(v reflect.Value) {
	from := p.pos
	p.skip()
	if p.err != nil {
		return
	}
	if err := json.Unmarshal(p.src[from:p.pos], v.Addr().Interface()); err != nil {
		p.fail(err)
	}
}
