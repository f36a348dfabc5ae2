package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one bug, as its file tells: lines with a name and a colon, then edits.
//
//	bug: what is wrong
//	cost: what a user would lose
//	find: unit raftlog; sim 60
//
//	internal/raftlog/append.go
//	<<<<
//	text that stands once in the file
//	====
//	what stands in its place
//	>>>>
type mutant struct {
	Name      string // the path of its file, without the ending
	Bug, Cost string
	Lanes     []lane
	edits     []edit
}

type edit struct{ file, old, new string }

const ending = ".mutant"

// load reads every mutant below dir, sorted by name.
func load(dir string) ([]*mutant, error) {
	var all []*mutant
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ending) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := parse(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rel, err := filepath.Rel(dir, path)
		m.Name = strings.TrimSuffix(filepath.ToSlash(rel), ending)
		all = append(all, m)
		return err
	})
	slices.SortFunc(all, func(a, b *mutant) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

func parse(text string) (*mutant, error) {
	m := &mutant{}
	file, part := "", -1 // of an edit: its old and its new text
	var parts [2][]string
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "<<<<" && part < 0 && file != "":
			part, parts = 0, [2][]string{}
		case line == "====" && part == 0:
			part = 1
		case line == ">>>>" && part == 1:
			m.edits = append(m.edits, edit{file, strings.Join(parts[0], "\n"), strings.Join(parts[1], "\n")})
			part = -1
		case part >= 0:
			parts[part] = append(parts[part], line)
		case line == "":
		case key == "bug" && m.Bug == "":
			m.Bug = value
		case key == "cost" && m.Cost == "":
			m.Cost = value
		case key == "find" && m.Lanes == nil:
			for words := range strings.SplitSeq(value, ";") {
				l, err := parseLane(words)
				if err != nil {
					return nil, fmt.Errorf("line %d: %w", n+1, err)
				}
				m.Lanes = append(m.Lanes, l)
			}
		case strings.HasSuffix(line, ".go"):
			file = line
		default:
			return nil, fmt.Errorf("line %d: %q does not belong here", n+1, line)
		}
	}
	if part >= 0 || m.Bug == "" || m.Cost == "" || m.Lanes == nil || m.edits == nil {
		return nil, fmt.Errorf("not whole: it needs bug, cost, find and an edit")
	}
	return m, nil
}

// apply returns the changed files, by path from the root. The old text of each edit must occur exactly once,
// otherwise it would be unclear what is tested.
func (m *mutant) apply(root string) (map[string]string, error) {
	out := map[string]string{}
	for _, e := range m.edits {
		text, ok := out[e.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return nil, fmt.Errorf("%s has %d times the text\n%s\nwhich mutants/%s%s wants to change: the code has moved, so let the mutant follow", e.file, n, e.old, m.Name, ending)
		}
		out[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	return out, nil
}
