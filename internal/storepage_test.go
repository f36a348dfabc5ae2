package internal

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestStorePageIsComplete looks in docs/format/store.md for every bucket, every
// fixed key and every file that the code names.
func TestStorePageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../docs/format/store.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)

	if want := "The directory has format " + format(t) + ","; !strings.Contains(page, want) {
		t.Errorf("the page does not say %q; what has changed?", want)
	}
	names := buckets(t)
	for name, number := range names {
		if row := fmt.Sprintf("\n| %d | %s |", number, bucketName(name)); !strings.Contains(page, row) {
			t.Errorf("the page has no row %q for engine.%s", row[1:], name)
		}
	}

	keys, files := stored(t, names)
	for k, packages := range keys {
		row := fmt.Sprintf("\n| %s | `%s` |", bucketName(k.bucket), k.text)
		if k.bucket == "V2" {
			row = fmt.Sprintf("| %s | `%s`;", bucketName(k.bucket), k.text) // its keys stand in the row of the bucket
		}
		_, rest, ok := strings.Cut(page, row)
		if !ok {
			t.Errorf("the page has no row %q, a key that %v names", strings.TrimSpace(row), packages)
			continue
		}
		line, _, _ := strings.Cut(rest, "\n")
		if !slices.ContainsFunc(packages, func(p string) bool { return strings.HasSuffix(line, "| `"+p+"` |") }) {
			t.Errorf("the row %q does not end with the package, which is one of %v", strings.TrimSpace(row), packages)
		}
	}
	for name, where := range files {
		if !strings.Contains(page, name) {
			t.Errorf("%s: the page does not name %q", where, name)
		}
	}
	if len(names) < 12 || len(keys) < 10 || len(files) < 10 {
		t.Errorf("found %d buckets, %d keys, %d files in the code; does this test still look in the right places?", len(names), len(keys), len(files))
	}
}

// bucketName is how the page writes a bucket: as etcd does, in backquotes, if etcd
// or a file has it.
func bucketName(constant string) string {
	if constant == "Local" {
		return "local"
	}
	name := strings.ToLower(constant[:1]) + constant[1:]
	if constant == "MembersRemoved" {
		name = "members_removed"
	}
	return "`" + name + "`"
}

// buckets returns the constants of type engine.Bucket.
func buckets(t *testing.T) map[string]int64 {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "engine/engine.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	conf := types.Config{Error: func(error) {}, IgnoreFuncBodies: true, Importer: noImports{}}
	pkg, _ := conf.Check("engine", set, []*ast.File{f}, nil) // what is imported does not matter here
	out := map[string]int64{}
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if !ok {
			continue
		}
		if n, ok := c.Type().(*types.Named); ok && n.Obj().Name() == "Bucket" {
			out[name], _ = constant.Int64Val(c.Val())
		}
	}
	return out
}

// format returns the constant datadir.Format.
func format(t *testing.T) string {
	t.Helper()
	for _, f := range files(t) {
		if f.path != "datadir/owner.go" {
			continue
		}
		value := ""
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 && v.Names[0].Name == "Format" {
				if lit, ok := v.Values[0].(*ast.BasicLit); ok {
					value = lit.Value
				}
			}
			return true
		})
		if value != "" {
			return value
		}
	}
	t.Fatal("datadir/owner.go has no constant Format")
	return ""
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

type storedKey struct{ bucket, text string }

// stored returns the fixed keys that product code names, with the packages that do,
// and the names of files with the places.
func stored(t *testing.T, buckets map[string]int64) (keys map[storedKey][]string, names map[string]string) {
	t.Helper()
	all := files(t)
	keys, names = map[storedKey][]string{}, map[string]string{}
	consts := map[string]string{} // "package name" to text
	for _, f := range all {
		eachConst(f, func(name, kind, text string) {
			consts[f.pkg+" "+name] = text
			isName := kind == "task" || slices.ContainsFunc([]string{"Name", "Suffix", "Prefix"}, func(s string) bool { return strings.HasSuffix(name, s) })
			if f.pkg == "datadir" && isName && text != "" {
				names[text] = f.path + " " + name
			}
		})
	}
	for _, f := range all {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fn, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if fn.Sel.Name == "PathJoin" && f.pkg == "datadir" {
				for _, a := range call.Args {
					if text, ok := literal(a); ok {
						names[text] = f.set.Position(call.Pos()).String()
					}
				}
			}
			if k, ok := keyOf(fn, call.Args, consts, f.pkg); ok && buckets[k.bucket] != 0 {
				keys[k] = append(keys[k], f.pkg)
			}
			return true
		})
	}
	return keys, names
}

// eachConst calls fn for the constants of a file that are texts, with the name of
// their type if it is given.
func eachConst(f file, fn func(name, kind, text string)) {
	for _, d := range f.ast.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			kind := ""
			if id, ok := v.Type.(*ast.Ident); ok {
				kind = id.Name
			}
			for i, e := range v.Values {
				if text, ok := literal(e); ok {
					fn(v.Names[i].Name, kind, text)
				}
			}
		}
	}
}

// keyOf returns the key in engine.Bucket.K([]byte("key")), also where it is a constant.
func keyOf(fn *ast.SelectorExpr, args []ast.Expr, consts map[string]string, pkg string) (k storedKey, ok bool) {
	bucket, ok := fn.X.(*ast.SelectorExpr)
	if !ok || fn.Sel.Name != "K" || len(args) != 1 {
		return k, false
	}
	if id, ok := bucket.X.(*ast.Ident); !ok || id.Name != "engine" {
		return k, false
	}
	conv, ok := args[0].(*ast.CallExpr)
	if !ok || len(conv.Args) != 1 {
		return k, false
	}
	text, ok := literal(conv.Args[0])
	if id, isName := conv.Args[0].(*ast.Ident); isName {
		text, ok = consts[pkg+" "+id.Name]
	}
	return storedKey{bucket.Sel.Name, text}, ok
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}
