package taskspec

import (
	"slices"
	"text/template/parse"
)

// walk calls visit for n and every node below it.
func walk(n parse.Node, visit func(parse.Node)) {
	visit(n)
	switch n := n.(type) {
	case *parse.ListNode:
		for _, c := range n.Nodes {
			walk(c, visit)
		}
	case *parse.ActionNode:
		walk(n.Pipe, visit)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			walk(c, visit)
		}
	case *parse.CommandNode:
		for _, c := range n.Args {
			walk(c, visit)
		}
	case *parse.ChainNode:
		walk(n.Node, visit)
	case *parse.TemplateNode:
		if n.Pipe != nil {
			walk(n.Pipe, visit)
		}
	case *parse.IfNode:
		walkBranch(&n.BranchNode, visit)
	case *parse.RangeNode:
		walkBranch(&n.BranchNode, visit)
	case *parse.WithNode:
		walkBranch(&n.BranchNode, visit)
	}
}

func walkBranch(n *parse.BranchNode, visit func(parse.Node)) {
	walk(n.Pipe, visit)
	walk(n.List, visit)
	if n.ElseList != nil {
		walk(n.ElseList, visit)
	}
}

// warnUndefined warns of values that the document prints and nobody defines. Only what is printed
// unconditionally and without a default is looked at.
func (p *parser) warnUndefined(tree *parse.Tree, data map[string]any) {
	if tree == nil || tree.Root == nil {
		return
	}
	for _, n := range tree.Root.Nodes {
		if len(p.warns) >= maxErrors {
			return
		}
		action, ok := n.(*parse.ActionNode)
		if !ok || len(action.Pipe.Decl) > 0 || len(action.Pipe.Cmds) == 0 || len(action.Pipe.Cmds[0].Args) != 1 {
			continue
		}
		f, ok := action.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
		if !ok || len(f.Ident) != 2 || handlesEmpty(action.Pipe.Cmds[1:]) {
			continue
		}
		p.warnUndefinedAt(int(f.Pos), data, f.Ident[0], f.Ident[1])
	}
}

// warnUndefinedAt warns of a reference whose name its scope does not have.
func (p *parser) warnUndefinedAt(off int, data map[string]any, scope, name string) {
	m, ok := data[scope].(map[string]any)
	if !ok {
		return
	}
	if _, ok := m[name]; ok {
		return
	}
	hint := didYouMean(name, keys(m))
	if scope == "Values" {
		hint += "; set it with --set " + name + "=..."
	}
	line, _ := p.place(off)
	if p.undefined == nil {
		p.undefined = map[int]string{}
	}
	p.undefined[line] = "." + scope + "." + clip(name)
	p.warnAt(off, ".%s.%s is not defined and renders as nothing%s", scope, clip(name), hint)
}

// keys returns the keys of m, sorted; none if there are too many to suggest one of them.
func keys[V any](m map[string]V) []string {
	if len(m) > maxSteps {
		return nil
	}
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// handlesEmpty reports whether the rest of a pipeline gives an undefined value a meaning.
func handlesEmpty(cmds []*parse.CommandNode) bool {
	for _, c := range cmds {
		if len(c.Args) == 0 {
			continue
		}
		if f, ok := c.Args[0].(*parse.IdentifierNode); ok {
			switch f.Ident {
			case "default", "coalesce", "empty", "ternary", "fail":
				return true
			}
		}
	}
	return false
}
