package internal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// order is the data path from the client down to the disk. A package imports
// only what stands below it. Packages of one line are on the same level and do
// not import each other.
var order = []string{
	"sim",
	"ctl utl",
	"config",
	"proxy/grpcproxy proxy/tcprelay",
	"rpc httpapi legacy/v2http gateway join discovery proxy/httpproxy",
	"h2",
	"legacy/v2auth",
	"listen logging tracing certs",
	"suggest diagnose",
	"server",
	"datadir legacy/v2member",
	"replica",
	"proposal readindex raftnode autocompact",
	"transport raftlog",
	"transport/peerapi",
	"apply",
	"mvcc",
	"snapshot boltdb",
	"watch",
	"legacy/v2state",
	"lease membership auth legacy/v2store",
	"command",
	"legacy/v2request",
	"wire rpc/v3lockpb rpc/v3electionpb",
	"engine/pebble engine/mem engine/enginetest digest",
	"engine",
	"metrics",
	"task durable password scrub descriptors",
	"clock crash build ids",
}

const module = "quorate/internal/"

// core packages are handed the time and do no I/O: the simulator drives them.
var core = []string{"proposal", "readindex", "raftnode", "replica", "apply", "mvcc", "lease", "auth", "membership", "watch", "command", "digest", "legacy/v2store", "legacy/v2state", "legacy/v2request", "autocompact", "ids"}

// allowed are the places where core code may do what it must not do elsewhere,
// each with its reason.
var allowed = map[string]string{
	"mvcc go": "background deletion is paced by its own goroutine; with Options.Manual there is none",
}

type file struct {
	pkg, path string
	ast       *ast.File
	set       *token.FileSet
}

// files returns every Go file below internal/ that is not a test.
func files(t *testing.T) []file {
	t.Helper()
	var out []file
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "." {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, file{filepath.ToSlash(filepath.Dir(path)), filepath.ToSlash(path), f, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("found only %d files; is the test in the right place?", len(out))
	}
	return out
}

// level returns the position of a package in the order; a folder inside a
// listed one has its level unless it is listed itself.
func level(pkg string) int {
	for p := pkg; p != "."; p = filepath.ToSlash(filepath.Dir(p)) {
		for i, line := range order {
			if slices.Contains(strings.Fields(line), p) {
				return i
			}
		}
	}
	return -1
}

func TestImportsGoDownwards(t *testing.T) {
	for _, f := range files(t) {
		from := level(f.pkg)
		if from < 0 {
			t.Errorf("%s: package is not in the order of arch_test.go; give it its place in the data path", f.path)
			continue
		}
		for _, imp := range f.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			if strings.HasPrefix(path, "go.etcd.io/etcd/server") || strings.HasPrefix(path, "go.etcd.io/etcd/etcdctl") || strings.HasPrefix(path, "go.etcd.io/etcd/etcdutl") {
				t.Errorf("%s imports %s: the real server belongs to compat/ only", f.path, path)
			}
			pkg, ours := strings.CutPrefix(path, module)
			if !ours || pkg == f.pkg || strings.HasPrefix(pkg, f.pkg+"/") || strings.HasPrefix(f.pkg, pkg+"/") && level(pkg) >= from {
				continue
			}
			if to := level(pkg); to <= from {
				t.Errorf("%s imports %s, which is not below it; return a value upwards, or declare an interface in %s that the upper one fits", f.path, pkg, f.pkg)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range files(t) {
		if docs[f.pkg] == nil {
			docs[f.pkg] = []string{}
		}
		if f.ast.Doc != nil && !ast.IsGenerated(f.ast) && strings.HasPrefix(f.ast.Doc.Text(), "Package ") {
			docs[f.pkg] = append(docs[f.pkg], f.ast.Doc.Text())
		}
	}
	for pkg, d := range docs {
		if len(d) != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, len(d))
			continue
		}
		for _, word := range []string{"In:", "Out:", "lways"} {
			if !strings.Contains(d[0], word) {
				t.Errorf("the comment of package %s does not say what comes in, what goes out and what is always true: %q is missing", pkg, word)
			}
		}
	}
}

// machineTime is what of package time asks the clock of the machine.
var machineTime = []string{"Now", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Since", "Until"}

// byTheMachine are the files that may ask it, each with its reason.
var byTheMachine = map[string]string{
	"h2/context.go": "one timer for each call with a deadline, which is to cost no more than that",
}

// TestTimeGoesThroughClock finds what takes the time from elsewhere than package clock.
func TestTimeGoesThroughClock(t *testing.T) {
	for _, f := range files(t) {
		if f.pkg == "clock" || ast.IsGenerated(f.ast) || byTheMachine[f.path] != "" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			x, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := x.X.(*ast.Ident); ok && id.Name == "time" && slices.Contains(machineTime, x.Sel.Name) {
				t.Errorf("%s uses time.%s: take the time from a clock.Clock that is given, or from package clock", f.set.Position(x.Pos()), x.Sel.Name)
			}
			return true
		})
	}
}

// TestCoreIsDeterministic looks for clocks, randomness, goroutines, files and
// sockets where the simulator must be able to decide everything.
func TestCoreIsDeterministic(t *testing.T) {
	forbidden := map[string][]string{
		"time":           machineTime,
		module + "clock": {"System", "Now", "Since", "Until", "After", "AfterFunc", "Pause"},
		"os":             nil, "net": nil, "net/http": nil, "math/rand": nil, "math/rand/v2": nil, "crypto/rand": nil,
	}
	for _, f := range files(t) {
		if !slices.Contains(core, f.pkg) && !slices.Contains(core, f.path) {
			continue
		}
		names := map[string]string{} // local name to import path
		for _, imp := range f.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			if fns, ok := forbidden[path]; ok {
				if fns == nil {
					t.Errorf("%s imports %s; a core package gets what it needs as an argument", f.path, path)
				}
				names[filepath.Base(path)] = path
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.GoStmt:
				if reason := allowed[f.pkg+" go"]; reason == "" {
					t.Errorf("%s starts a goroutine; drivers do that", f.set.Position(x.Pos()))
				}
			case *ast.SelectorExpr:
				id, ok := x.X.(*ast.Ident)
				if ok && slices.Contains(forbidden[names[id.Name]], x.Sel.Name) {
					t.Errorf("%s uses %s.%s; take the time as an argument or from a clock.Clock", f.set.Position(x.Pos()), id.Name, x.Sel.Name)
				}
			}
			return true
		})
	}
}

// ownDurability are the packages that rename files and sync directories by themselves,
// each with its reason.
var ownDurability = map[string]string{
	"durable":         "it is its work",
	"raftlog":         "segments grow by appending, and a new one joins the running checksum of the last",
	"engine/pebble":   "passes the calls of Pebble on",
	"descriptors":     "passes the calls of a file system on",
	"sim":             "is the disk",
	"certs/certstest": "files of tests",
}

// TestFilesAreReplacedDurably looks for files that are put in place by hand, where a
// step can be forgotten: package durable has all of them, and the tests of each.
func TestFilesAreReplacedDurably(t *testing.T) {
	for _, f := range files(t) {
		if ownDurability[f.pkg] != "" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if x, ok := n.(*ast.SelectorExpr); ok {
				switch id, _ := x.X.(*ast.Ident); {
				case id != nil && id.Name == "durable":
				case x.Sel.Name == "Rename", x.Sel.Name == "OpenDir", id != nil && id.Name == "os" && x.Sel.Name == "WriteFile":
					t.Errorf("%s calls %s; use package durable", f.set.Position(x.Pos()), x.Sel.Name)
				}
			}
			return true
		})
	}
}

// likePeers are files with texts that look like the protocol between members, each with
// its reason.
var likePeers = map[string]string{
	"legacy/v2http/v2http.go": "the members of the v2 API stand below /v2",
	"logging/packages.go":     "is about the path of an import",
}

// TestPeerProtocolStandsOnce finds paths and headers of the protocol between members that
// are written down elsewhere than in the package that has both halves of it.
func TestPeerProtocolStandsOnce(t *testing.T) {
	paths := []string{"/raft", "/members", "/leases", "/downgrade", "/version"}
	headers := []string{"X-Server-From", "X-Server-Version", "X-Min-Cluster-Version", "X-Etcd-Cluster-ID", "X-Raft-To", "X-PeerURLs"}
	found := 0
	for _, f := range files(t) {
		if ast.IsGenerated(f.ast) || likePeers[f.path] != "" {
			continue
		}
		imports := map[ast.Expr]bool{}
		for _, imp := range f.ast.Imports {
			imports[imp.Path] = true
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING || imports[lit] {
				return true
			}
			text, _ := strconv.Unquote(lit.Value)
			is := slices.ContainsFunc(paths, func(p string) bool { return text == p || strings.HasPrefix(text, p+"/") }) ||
				slices.ContainsFunc(headers, func(h string) bool { return strings.EqualFold(text, h) })
			switch {
			case is && f.pkg == "transport/peerapi":
				found++
			case is:
				t.Errorf("%s: %q is of the peer protocol, which stands in transport/peerapi", f.set.Position(lit.Pos()), text)
			}
			return true
		})
	}
	if found < len(paths)+len(headers) {
		t.Errorf("found only %d paths and headers in transport/peerapi; does this test know them still?", found)
	}
}

// TestNoCatchAllPackages keeps out names that say nothing.
func TestNoCatchAllPackages(t *testing.T) {
	for _, f := range files(t) {
		switch name := filepath.Base(f.pkg); name {
		case "util", "utils", "common", "types", "helpers", "misc", "impl", "base":
			t.Errorf("%s: a package called %s collects what belongs elsewhere", f.path, name)
		}
	}
}

// TestArchitectureNamesWhatExists looks up every function that the walks in
// docs/ARCHITECTURE.md name in backquotes as file.go Name.
func TestArchitectureNamesWhatExists(t *testing.T) {
	doc, err := os.ReadFile("../docs/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, f := range files(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				declared[f.path+" "+fn.Name.Name] = true
			}
		}
	}
	n := 0
	for _, part := range strings.Split(string(doc), "`") {
		path, name, ok := strings.Cut(part, ".go ")
		if !ok || strings.ContainsAny(part, "\n(") {
			continue
		}
		n++
		if key := fmt.Sprintf("%s.go %s", path, name); !declared[key] {
			t.Errorf("docs/ARCHITECTURE.md names %q, which does not exist", key)
		}
	}
	if n < 20 {
		t.Errorf("docs/ARCHITECTURE.md names only %d functions; the walks must lead through the code", n)
	}
}
