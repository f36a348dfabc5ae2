package main

import (
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMutantsFit checks that every mutant still applies and compiles, which takes a second; `make mutants`
// checks that the lanes find it.
func TestMutantsFit(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	all, err := load(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 40 {
		t.Fatalf("only %d mutants", len(all))
	}
	changed := map[*mutant]map[string]string{}
	dirs := map[string]bool{}
	for _, m := range all {
		files, err := m.apply(root)
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		changed[m] = files
		for f := range files {
			dirs[path.Dir(f)] = true
		}
	}
	c := newChecker(t, root, dirs)
	for _, m := range all {
		if err := c.check(changed[m]); err != nil {
			t.Errorf("%s does not compile: %v", m.Name, err)
		}
	}
}

// TestTableIsWhole compares the table of the document with the mutants.
func TestTableIsWhole(t *testing.T) {
	all, err := load(".")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../docs/proof.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rows, _, err := cutTable(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		r, ok := rows[m.Name]
		if !ok || r.bug != m.Bug || r.cost != m.Cost {
			t.Errorf("docs/proof.md has no row of %s as it is now: make mutants ONLY=%s", m.Name, m.Name)
		}
		delete(rows, m.Name)
	}
	for name := range rows {
		t.Errorf("docs/proof.md has a row of %s, which does not exist", name)
	}
}

// TestRow writes a row and reads it again.
func TestRow(t *testing.T) {
	m := &mutant{Name: "a/b", Bug: "bug", Cost: "cost"}
	want := (&finding{lane: lane{text: "unit mvcc TestA|TestB"}, says: "TestA"}).row(m)
	line := want.String()
	if strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") != 8 {
		t.Errorf("%s does not have seven cells", line)
	}
	if got, ok := readRow(line); !ok || got != want {
		t.Errorf("%s: %+v", line, got)
	}
}

// checker type-checks changed packages; their imports come from the compiler's cache.
type checker struct {
	t    *testing.T
	root string
	set  *token.FileSet
	pkgs map[string]listed // by directory from the root
	imp  types.Importer
}

type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
}

func newChecker(t *testing.T, root string, dirs map[string]bool) *checker {
	c := &checker{t: t, root: root, set: token.NewFileSet(), pkgs: map[string]listed{}}
	args := []string{"list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles"}
	for d := range dirs {
		args = append(args, "./"+d)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	export := map[string]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		export[p.ImportPath] = p.Export
		if rel, err := filepath.Rel(root, p.Dir); err == nil && dirs[filepath.ToSlash(rel)] {
			c.pkgs[filepath.ToSlash(rel)] = p
		}
	}
	c.imp = importer.ForCompiler(c.set, "gc", func(p string) (io.ReadCloser, error) { return os.Open(export[p]) })
	return c
}

func (c *checker) check(files map[string]string) error {
	dirs := map[string]bool{}
	for f := range files {
		dirs[path.Dir(f)] = true
	}
	for dir := range dirs {
		p := c.pkgs[dir]
		var parsed []*ast.File
		for _, name := range p.GoFiles {
			var src any
			if text, ok := files[path.Join(dir, name)]; ok {
				src = text
			}
			f, err := parser.ParseFile(c.set, filepath.Join(p.Dir, name), src, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			parsed = append(parsed, f)
		}
		conf := types.Config{Importer: c.imp}
		if _, err := conf.Check(p.ImportPath, c.set, parsed, nil); err != nil {
			return err
		}
	}
	return nil
}

func TestParse(t *testing.T) {
	m, err := parse("bug: b\ncost: c\nfind: unit mvcc TestA|TestB; sim 5\n\ninternal/x.go\n<<<<\n\told\n====\n\tnew\n\n>>>>\n")
	if err != nil {
		t.Fatal(err)
	}
	if m.edits[0] != (edit{"internal/x.go", "\told", "\tnew\n"}) || m.Lanes[1].seeds != 5 || m.Lanes[0].pattern != "TestA|TestB" {
		t.Errorf("%+v", m)
	}
	for _, bad := range []string{"", "bug: b\n", "bug: b\ncost: c\nfind: sim\n", "bug: b\ncost: c\nfind: sim 5\nx.go\n<<<<\na\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken for a mutant", bad)
		}
	}
}

func TestWhichSeed(t *testing.T) {
	for out, want := range map[string]int{
		"seed 1: 100 events, 5\nseed 2: 90 events\nsim_test.go:1: seed 3 at 5s: hash": 3,
		"seed 1: 100 events\npanic: x":         2,
		"seed 1: 12 keys checked\n--- FAIL: x": 2,
		"panic: x":                             1,
	} {
		if got := seedOf(out); got != want {
			t.Errorf("%q: seed %d, want %d", out, got, want)
		}
	}
}

// TestLaneWithoutFailedSeed reads the output of seeded lanes that failed.
func TestLaneWithoutFailedSeed(t *testing.T) {
	const (
		passed  = "=== RUN   TestSim\n    sim_test.go:126: seed 1: 9000 events of 3 members, 800 operations acknowledged, 0 changes of the membership, 1 snapshots installed, trace 0b\n"
		missing = "    sim_test.go:147: 0 changes of the membership and 1 installed snapshots: the runs prove nothing about them\n    sim_test.go:156: no disk was full: the runs prove nothing about that\n"
		end     = "--- FAIL: TestSim (9.10s)\nFAIL\n"
	)
	sim, unit := lane{pkg: "sim", seeds: 60}, lane{pkg: "server"}
	for _, c := range []struct {
		what  string
		lane  lane
		out   string
		seeds int // in which it was found; 0 if not by a seed, -1 if it was not found
		says  string
	}{
		{"something never happened", sim, passed + missing + end, -1, ""},
		{"something never happened in another lane", sim, "    rivals_test.go:54: 3 removals in 8 runs: the runs prove nothing about them\n--- FAIL: TestRivals (1.00s)\nFAIL\n", -1, ""},
		{"a seed with few operations", sim, passed + "    sim_test.go:116: seed 2: only 7 operations were acknowledged; the run proves nothing\n" + missing + end, 2, "TestSim"},
		{"a seed without progress", sim, "    rivals_test.go:50: seed 3: the remaining members make no progress\n    rivals_test.go:54: 3 removals in 8 runs: the runs prove nothing about them\n--- FAIL: TestRivals (1.00s)\n", 3, "TestRivals"},
		{"a broken promise", sim, passed + "    sim_test.go:38: seed 2 at 5s: hash\n" + end, 2, "TestSim"},
		{"two traces", sim, "    sim_test.go:123: seed 1 gave two traces: {} and {}\n" + end, 1, "TestSim"},
		{"a panic", sim, passed + missing + end + "panic: broken\n\ngoroutine 1 [running]:\n", 2, "TestSim: panic: broken"},
		{"a loop", sim, passed + "panic: test timed out after 13m0s\n", 2, "hangs"},
		{"no memory", sim, passed + "fatal error: runtime: out of memory\n", 2, "fatal error: runtime: out of memory"},
		{"a lane without seeds", unit, missing + "--- FAIL: TestQuota (1.00s)\n", 0, "TestQuota"},
	} {
		f := c.lane.found(c.out, c.lane.seeds)
		if c.seeds < 0 {
			if f != nil {
				t.Errorf("%s: found in seed %d by %s", c.what, f.seeds, f.says)
			}
			continue
		}
		if f == nil || f.seeds != c.seeds || f.says != c.says {
			t.Errorf("%s: %+v, want seed %d by %s", c.what, f, c.seeds, c.says)
		}
	}
}

// TestMessagesOfTheSimulator checks that the messages of the seeded lanes are told apart as they are meant.
func TestMessagesOfTheSimulator(t *testing.T) {
	message := regexp.MustCompile(`t\.(Log|Error|Fatal)f?\("([^"]*)`)
	files, err := filepath.Glob("../internal/sim/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	ofSeeds, ofAll := 0, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range message.FindAllStringSubmatch(string(text), -1) {
			fails, says := m[1] != "Log", strings.ReplaceAll(m[2], "%d", "7")
			if strings.HasPrefix(says, "seed 7") {
				ofSeeds++
				if failedSeed.MatchString(says) != fails || passedSeed.MatchString(says) == fails || missed.MatchString(says) {
					t.Errorf("%s: %q is misread", file, m[2])
				}
			} else if strings.Contains(says, "prove nothing") {
				ofAll++
				if !fails || !missed.MatchString(says) {
					t.Errorf("%s: %q is misread", file, m[2])
				}
			}
		}
	}
	if ofSeeds < 10 || ofAll < 5 {
		t.Errorf("the tests of the simulator have %d messages of one seed and %d of all: this test looks for the wrong text", ofSeeds, ofAll)
	}
}
