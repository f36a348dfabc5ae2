package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Limits of what a reader holds in one head. Generated code and, for the length of
// functions, tests are free of them: a table of cases is long and simple.
const (
	maxFileLines     = 700
	maxFuncLines     = 80
	maxExported      = 25 // exported methods of a type
	maxServiceMethod = 25 // methods of a type in package server, exported or not
)

func TestSizes(t *testing.T) {
	exported, all := map[string]int{}, map[string]int{}
	for _, f := range goFiles(t) {
		if ast.IsGenerated(f.ast) {
			continue
		}
		test := strings.HasSuffix(f.path, "_test.go")
		if n := f.set.Position(f.ast.FileEnd).Line; n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d; cut it where the idea divides", f.path, n, maxFileLines)
		}
		for _, d := range f.ast.Decls {
			fd, ok := d.(*ast.FuncDecl)
			if !ok || test {
				continue
			}
			if n := f.set.Position(fd.End()).Line - f.set.Position(fd.Pos()).Line + 1; n > maxFuncLines {
				t.Errorf("%s: %s has %d lines, at most %d", f.path, fd.Name.Name, n, maxFuncLines)
			}
			if typ := receiver(fd); typ != "" {
				all[f.pkg+"."+typ]++
				if fd.Name.IsExported() {
					exported[f.pkg+"."+typ]++
				}
			}
		}
	}
	for typ, n := range exported {
		if n > maxExported {
			t.Errorf("%s has %d exported methods, at most %d", typ, n, maxExported)
		}
	}
	for typ, n := range all {
		if strings.HasPrefix(typ, "internal/server.") && n > maxServiceMethod {
			t.Errorf("%s has %d methods, at most %d: give some of them to a type of their own", typ, n, maxServiceMethod)
		}
	}
}

// receiver returns the name of the type that a method belongs to, empty for a function.
func receiver(fd *ast.FuncDecl) string {
	if fd.Recv == nil {
		return ""
	}
	x := fd.Recv.List[0].Type
	for {
		switch y := x.(type) {
		case *ast.StarExpr:
			x = y.X
		case *ast.IndexExpr:
			x = y.X
		case *ast.IndexListExpr:
			x = y.X
		case *ast.Ident:
			return y.Name
		default:
			return ""
		}
	}
}

// goFiles returns every Go file of the product, tests too; paths begin at the root.
func goFiles(t *testing.T) (out []file) {
	t.Helper()
	for _, root := range []string{"../internal", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			path = strings.TrimPrefix(filepath.ToSlash(path), "../")
			out = append(out, file{filepath.ToSlash(filepath.Dir(path)), path, f, set})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}
