package internal

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// numbers are kinds of numbers that must not be mixed. A field, parameter, result or
// variable with such a name has the type of its kind, not the plain one, and so has what a
// function with such a name returns.
var numbers = []struct {
	name  *regexp.Regexp
	plain string
	typ   string
	// except are packages and files that may use the plain type: generated messages
	// and their encoding, what implements an interface of raft, programs that use the
	// types of etcd's client, and the v2 API, which has an index of its own.
	except []string
}{
	{regexp.MustCompile(`^(?i)(prev)?lease(s|ids?)?$`), "int64", "lease.ID", []string{
		"wire", "rpc/v3electionpb", "rpc/v3lockpb", "ctl", "apply/txn.go", "rpc/traced.go"}},
	{regexp.MustCompile(`^(?i)((local|remote|peer|leader|sender)?members?(ids?)?|(leader|local|remote|peer|voter)ids?|lead(er)?|self)$`), "uint64", "ids.Member", []string{
		"wire", "ctl"}},
	{regexp.MustCompile(`^(?i)(((start|min|compact|hash|current|published|header)_?)?(rev|revision)|compacted|(before)?mod(rev|revision)?|create(rev|revision))$`), "int64", "ids.Revision", []string{
		"wire", "rpc/v3electionpb", "rpc/v3lockpb", "ctl", "discovery", "proxy/grpcproxy", "apply/txn.go"}},
	{regexp.MustCompile(`^(?i)(raft|base|read|change|log)?term$`), "uint64", "ids.Term", []string{
		"wire", "ctl", "raftlog/read.go", "raftlog/inspect.go", "raftlog/record.go", "transport/codec.go", "transport/frame.go"}},
	{regexp.MustCompile(`^(?i)((raft|log|snap|snapshot|applied|commit|committed|consistent|first|last|mark)?index|applied|commit|committed)$`), "uint64", "ids.Index", []string{
		"wire", "ctl", "raftlog/read.go", "raftlog/record.go", "transport/codec.go", "transport/frame.go",
		"discovery", "legacy/v2auth", "legacy/v2http/keys.go", "legacy/v2http/parse.go", "legacy/v2state", "legacy/v2store"}},
	{regexp.MustCompile(`^(?i)cluster(id)?$`), "uint64", "ids.Cluster", []string{"wire"}},
}

// TestNumbersHaveTypes finds plain numbers where a type of their own exists.
func TestNumbersHaveTypes(t *testing.T) {
	for _, f := range files(t) {
		for _, n := range numbers {
			if slices.Contains(n.except, f.pkg) || slices.Contains(n.except, filepath.ToSlash(f.path)) {
				continue
			}
			check := func(names []*ast.Ident, typ ast.Expr) {
				for _, name := range names {
					if n.name.MatchString(name.Name) && mentions(typ, n.plain) {
						t.Errorf("%v: %s is %s, want %s", f.set.Position(name.Pos()), name.Name, n.plain, n.typ)
					}
				}
			}
			ast.Inspect(f.ast, func(x ast.Node) bool {
				switch x := x.(type) {
				case *ast.Field:
					check(x.Names, x.Type)
					if fn, ok := x.Type.(*ast.FuncType); ok {
						check(x.Names, returns(fn))
					}
				case *ast.FuncDecl:
					check([]*ast.Ident{x.Name}, returns(x.Type))
				case *ast.ValueSpec:
					check(x.Names, x.Type)
				}
				return true
			})
		}
	}
}

// returns is the type of the first result of a function, nil if it has none.
func returns(fn *ast.FuncType) ast.Expr {
	if fn.Results == nil {
		return nil
	}
	return fn.Results.List[0].Type
}

// mentions reports whether typ is the plain type, or a slice, array or map key of it.
func mentions(typ ast.Expr, plain string) bool {
	switch x := typ.(type) {
	case *ast.Ident:
		return x.Name == plain
	case *ast.ArrayType:
		return mentions(x.Elt, plain)
	case *ast.MapType:
		return mentions(x.Key, plain)
	}
	return false
}
