package internal

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// numbers are kinds of numbers that must not be mixed. A field, parameter, result or
// variable with such a name has the type of its kind, not the plain one.
var numbers = []struct {
	name  *regexp.Regexp
	plain string
	typ   string
	// except are packages and files that may use the plain type: generated messages
	// and their encoding, and programs that use the types of etcd's client.
	except []string
}{
	{regexp.MustCompile(`^(?i)(prev)?lease(s|ids?)?$`), "int64", "lease.ID", []string{
		"wire", "rpc/v3electionpb", "rpc/v3lockpb", "ctl", "apply/txn.go", "rpc/traced.go"}},
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
				case *ast.ValueSpec:
					check(x.Names, x.Type)
				}
				return true
			})
		}
	}
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
