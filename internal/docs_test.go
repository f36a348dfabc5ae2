package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// The tests of this file keep the documents true: what they link to, and what
// they name, exists; and what must be explained is.

// documents returns every Markdown file of the tree, by its path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != ".." && (strings.HasPrefix(name, ".") || name == "bin" || name == "run" || name == "testdata" || name == "node_modules" || name == "vendor"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".md"):
			return nil
		}
		b, err := os.ReadFile(p)
		docs[strings.TrimPrefix(filepath.ToSlash(p), "../")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) < 20 {
		t.Fatalf("found only %d documents; is the test in the right place?", len(docs))
	}
	return docs
}

var (
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```[ \t]*$")
	indented = regexp.MustCompile(`(?m)^(    |\t).*$`)
	inline   = regexp.MustCompile("`[^`\n]*`")
	link     = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
)

// links returns what a document links to within the tree: code is left out.
func links(text string) (targets []string) {
	for _, code := range []*regexp.Regexp{fence, indented, inline} {
		text = code.ReplaceAllString(text, "")
	}
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(m[1], "://") && !strings.HasPrefix(m[1], "mailto:") {
			targets = append(targets, m[1])
		}
	}
	return targets
}

// anchors returns what can stand behind the # of a link to a document.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		var b strings.Builder
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r > 127 && (unicode.IsLetter(r) || unicode.IsNumber(r)) || 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
				b.WriteRune(r)
			}
		}
		out[b.String()] = true
	}
	return out
}

func TestLinksOfDocumentsResolve(t *testing.T) {
	docs := documents(t)
	for doc, text := range docs {
		for _, l := range links(text) {
			file, anchor, _ := strings.Cut(l, "#")
			target := doc
			if file != "" {
				target = path.Join(path.Dir(doc), file)
			}
			if _, err := os.Stat(filepath.Join("..", target)); err != nil {
				t.Errorf("%s links to %s, which does not exist", doc, l)
			} else if anchor != "" && !anchors(docs[target])[anchor] {
				t.Errorf("%s links to %s, and there is no such heading", doc, l)
			}
		}
	}
}

// TestDocumentsAreReachable follows the links from README.md.
func TestDocumentsAreReachable(t *testing.T) {
	docs := documents(t)
	seen := map[string]bool{}
	var visit func(doc string)
	visit = func(doc string) {
		if seen[doc] {
			return
		}
		seen[doc] = true
		for _, l := range links(docs[doc]) {
			file, _, _ := strings.Cut(l, "#")
			if target := path.Join(path.Dir(doc), file); docs[target] != "" {
				visit(target)
			} else if index := path.Join(target, "README.md"); docs[index] != "" {
				visit(index)
			}
		}
	}
	visit("README.md")
	for _, doc := range slices.Sorted(maps.Keys(docs)) {
		if !seen[doc] {
			t.Errorf("%s: no link leads there from README.md", doc)
		}
	}
}

// TestReadmesLinkToTheSame compares the two languages.
func TestReadmesLinkToTheSame(t *testing.T) {
	of := func(name string) []string {
		b, err := os.ReadFile("../" + name)
		if err != nil {
			t.Fatal(err)
		}
		l := links(string(b))
		slices.Sort(l)
		return slices.DeleteFunc(slices.Compact(l), func(s string) bool { return strings.HasPrefix(s, "README") })
	}
	en, zh := of("README.md"), of("README.zh-CN.md")
	for _, l := range en {
		if !slices.Contains(zh, l) {
			t.Errorf("README.md links to %s, README.zh-CN.md does not", l)
		}
	}
	for _, l := range zh {
		if !slices.Contains(en, l) {
			t.Errorf("README.zh-CN.md links to %s, README.md does not", l)
		}
	}
}

// TestLanesAreExplained compares the targets of the Makefile with CONTRIBUTING.md.
func TestLanesAreExplained(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	targets, phony := map[string]bool{}, 0
	for _, m := range regexp.MustCompile(`(?m)^\.PHONY:(.*)$`).FindAllStringSubmatch(string(makefile), -1) {
		for _, name := range strings.Fields(m[1]) {
			targets[name] = false
			phony++
		}
	}
	if phony < 20 {
		t.Fatalf("the Makefile has only %d targets", phony)
	}
	for _, m := range regexp.MustCompile("(?m)(?:`|^    )make ([a-z0-9][a-z0-9-]*)").FindAllStringSubmatch(string(text), -1) {
		if _, ok := targets[m[1]]; !ok {
			t.Errorf("CONTRIBUTING.md names `make %s`, which the Makefile does not have", m[1])
		}
		targets[m[1]] = true
	}
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		if !targets[name] {
			t.Errorf("CONTRIBUTING.md does not say what `make %s` is for", name)
		}
	}
}

// declarations returns every name that is declared at the top of a file, as
// "path Name". Paths are relative to internal/, or to the root outside of it.
func declarations(t *testing.T) (names, paths map[string]bool) {
	t.Helper()
	names, paths = map[string]bool{}, map[string]bool{}
	for _, root := range []string{"internal", "cmd", "compat", "bench"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(filepath.ToSlash(p), "../")
			paths[name] = true
			name = strings.TrimPrefix(name, "internal/")
			paths[name] = true
			if d.IsDir() || !strings.HasSuffix(p, ".go") {
				return nil
			}
			f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range f.Decls {
				switch x := decl.(type) {
				case *ast.FuncDecl:
					names[name+" "+x.Name.Name] = true
				case *ast.GenDecl:
					for _, s := range x.Specs {
						switch s := s.(type) {
						case *ast.TypeSpec:
							names[name+" "+s.Name.Name] = true
						case *ast.ValueSpec:
							for _, id := range s.Names {
								names[name+" "+id.Name] = true
							}
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names, paths
}

// TestDesignNamesWhatExists looks up what the house documents name in backquotes:
// `file.go Name` is declared there, `package/file.go` and `package/` exist.
func TestDesignNamesWhatExists(t *testing.T) {
	names, paths := declarations(t)
	for doc, text := range documents(t) {
		design := strings.HasPrefix(doc, "docs/design/")
		if !design && doc != "CONTRIBUTING.md" && doc != "SECURITY.md" {
			continue
		}
		n := 0
		for _, quoted := range inline.FindAllString(fence.ReplaceAllString(text, ""), -1) {
			part := strings.Trim(quoted, "`")
			file, name, named := strings.Cut(part, ".go ")
			switch {
			case named && !strings.ContainsAny(part, "(<*"):
				n++
				if !names[file+".go "+name] {
					t.Errorf("%s names %q, which does not exist", doc, part)
				}
			case strings.HasSuffix(part, ".go") && strings.Contains(part, "/") && !strings.ContainsAny(part, " *<"):
				n++
				if !paths[part] {
					t.Errorf("%s names %q, which does not exist", doc, part)
				}
			case strings.HasPrefix(part, "internal/") || strings.HasPrefix(part, "compat/") || strings.HasPrefix(part, "cmd/"):
				n++
				if _, err := os.Stat(filepath.Join("..", part)); err != nil && !strings.ContainsAny(part, "*<") && !strings.HasPrefix(part, "compat/bin") {
					t.Errorf("%s names %q, which does not exist", doc, part)
				}
			}
		}
		if design && n == 0 && doc != "docs/design/README.md" {
			t.Errorf("%s does not say where in the code the decision lives", doc)
		}
	}
}

// TestDesignPagesHaveTheirParts: a decision without its reason, or without what
// would change it, helps nobody who wants to change it.
func TestDesignPagesHaveTheirParts(t *testing.T) {
	for doc, text := range documents(t) {
		if !strings.HasPrefix(doc, "docs/design/") || doc == "docs/design/README.md" {
			continue
		}
		for _, part := range []string{"## Decision", "## Alternatives", "## Why", "## Where", "## What would change our mind"} {
			if !strings.Contains(text, "\n"+part+"\n") {
				t.Errorf("%s has no heading %q", doc, part)
			}
		}
	}
}
