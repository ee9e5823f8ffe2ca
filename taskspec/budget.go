package taskspec

import (
	"errors"
	"reflect"
	"text/template"
	"text/template/parse"
	"time"
)

const (
	maxWork        = 24 << 20 // units of a template's work, about a byte handled each
	iterationWork  = 1024     // of one round of a range
	invocationWork = 4096     // of one use of a defined template, which may be recursive
)

var (
	errTooMuchWork = errors.New("the template does too much work; loops, repetitions and texts must be smaller")
	errTooDeep     = errors.New("the value is nested too deep, or contains itself")
)

// A budget is what executing a template may still cost.
type budget struct{ left float64 }

func (b *budget) spend(n float64) error {
	if b.left -= n; b.left < 0 {
		return errTooMuchWork
	}
	return nil
}

// spendOn spends what values are large.
func (b *budget) spendOn(values ...reflect.Value) error {
	m := measure{left: b.left}
	for _, v := range values {
		m.add(v, 0)
	}
	if m.deep {
		return errTooDeep
	}
	return b.spend(b.left - m.left)
}

var errorType = reflect.TypeFor[error]()

// charge returns a function that does what fn does, but fails when the budget is used up.
func (b *budget) charge(name string, fn any) any {
	f := reflect.ValueOf(fn)
	t := f.Type()
	in := make([]reflect.Type, t.NumIn())
	for i := range in {
		in[i] = t.In(i)
	}
	out := []reflect.Type{t.Out(0), errorType}
	cost := costs[name]
	call := func(args []reflect.Value) []reflect.Value {
		zero := reflect.Zero(t.Out(0))
		if err := b.spendOn(args...); err != nil {
			return []reflect.Value{zero, reflect.ValueOf(&err).Elem()}
		}
		if cost != nil {
			if err := b.spend(max(0, cost(args))); err != nil {
				return []reflect.Value{zero, reflect.ValueOf(&err).Elem()}
			}
		}
		var res []reflect.Value
		if t.IsVariadic() {
			res = f.CallSlice(args)
		} else {
			res = f.Call(args)
		}
		if len(res) == 2 && !res[1].IsNil() {
			return res
		}
		if err := b.spendOn(res[0]); err != nil {
			return []reflect.Value{zero, reflect.ValueOf(&err).Elem()}
		}
		return []reflect.Value{res[0], reflect.Zero(errorType)}
	}
	return reflect.MakeFunc(reflect.FuncOf(in, out, t.IsVariadic()), call).Interface()
}

// Functions that prepare adds to templates. No author can write their names.
const (
	funcIteration  = "_iteration"
	funcInvocation = "_invocation"
	funcPrint      = "_print"
)

// prepare makes parsed templates executable on a budget: the functions they use are charged, as are
// loops, uses of other templates, and printed values that a function may have made. It tells out where
// the text nodes are.
func prepare(trees map[string]*parse.Tree, out *tracer, now time.Time) (*template.Template, error) {
	b := &budget{left: maxWork}
	used, plain := b.functions(trees, out, now)
	if !plain {
		for _, t := range trees {
			guard(t)
		}
	}
	tmpl := template.New(templateName).Option("missingkey=zero").Funcs(used)
	for name, t := range trees {
		if _, err := tmpl.AddParseTree(name, t); err != nil {
			return nil, err
		}
	}
	return tmpl, nil
}

// functions returns the functions that templates use. Plain templates have no loops, templates or
// functions, so nothing in them needs to be guarded.
func (b *budget) functions(trees map[string]*parse.Tree, out *tracer, now time.Time) (used template.FuncMap, plain bool) {
	used, plain = template.FuncMap{}, len(trees) == 1
	var clock map[string]any
	for _, t := range trees {
		walk(t.Root, func(n parse.Node) {
			switch n := n.(type) {
			case *parse.TextNode:
				if len(n.Text) > 0 {
					out.nodes[&n.Text[0]] = int(n.Pos)
				}
			case *parse.RangeNode, *parse.TemplateNode:
				plain = false
			case *parse.IdentifierNode:
				f, ok := templateFuncs()[n.Ident]
				if !ok || used[n.Ident] != nil {
					return
				}
				plain = false
				if clock == nil {
					clock = timeFuncs(now)
				}
				if timed, ok := clock[n.Ident]; ok {
					f = timed
				}
				used[n.Ident] = b.charge(n.Ident, f)
			}
		})
	}
	if !plain {
		used[funcIteration] = func() (string, error) { return "", b.spend(iterationWork) }
		used[funcInvocation] = func() (string, error) { return "", b.spend(invocationWork) }
		used[funcPrint] = func(v any) (any, error) { return v, b.spendOn(reflect.ValueOf(v)) }
	}
	return used, plain
}

// guard inserts the calls that charge loops, uses and prints.
func guard(t *parse.Tree) {
	t.Root.Nodes = append([]parse.Node{callNode(funcInvocation, t.Root.Pos)}, t.Root.Nodes...)
	walk(t.Root, func(n parse.Node) {
		switch n := n.(type) {
		case *parse.RangeNode:
			n.List.Nodes = append([]parse.Node{callNode(funcIteration, n.Pos)}, n.List.Nodes...)
		case *parse.ActionNode:
			if last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]; len(n.Pipe.Decl) == 0 && !isGuard(last) {
				n.Pipe.Cmds = append(n.Pipe.Cmds, commandNode(funcPrint, n.Pos))
			}
		}
	})
}

func isGuard(c *parse.CommandNode) bool {
	f, ok := c.Args[0].(*parse.IdentifierNode)
	return ok && f.Ident[0] == '_'
}

func callNode(name string, pos parse.Pos) *parse.ActionNode {
	return &parse.ActionNode{NodeType: parse.NodeAction, Pos: pos, Pipe: &parse.PipeNode{
		NodeType: parse.NodePipe, Pos: pos, Cmds: []*parse.CommandNode{commandNode(name, pos)},
	}}
}

func commandNode(name string, pos parse.Pos) *parse.CommandNode {
	return &parse.CommandNode{NodeType: parse.NodeCommand, Pos: pos, Args: []parse.Node{parse.NewIdentifier(name).SetPos(pos)}}
}
