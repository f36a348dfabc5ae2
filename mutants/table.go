package main

import (
	"fmt"
	"os"
	"strings"
)

// notFound replaces the lane in the row of a mutant that no lane finds.
const notFound = "**none yet**"

// row is the row of a mutant in the table.
type row struct{ name, bug, cost, lane, seeds, took, says string }

// row is empty for a mutant that was not found.
func (f *finding) row(m *mutant) row {
	if f == nil {
		return row{}
	}
	seeds := "-"
	if f.seeds > 0 {
		seeds = fmt.Sprint(f.seeds)
	}
	test, _, _ := strings.Cut(f.says, ": ")
	if strings.HasPrefix(f.says, "panic") || strings.HasPrefix(f.says, "fatal") {
		test = "a panic"
	}
	return row{m.Name, m.Bug, m.Cost, "`" + f.lane.text + "`", seeds, fmt.Sprintf("%.1f", f.took.Seconds()), "`" + test + "`"}
}

// String escapes the bars in the patterns of lanes, which would end the cell, also within code.
func (r row) String() string {
	cells := []string{r.name, r.bug, r.cost, r.lane, r.says, r.seeds, r.took}
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(c, "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

func readRow(line string) (row, bool) {
	f := strings.Split(strings.Trim(line, "| "), " | ")
	if len(f) != 7 {
		return row{}, false
	}
	for i, c := range f {
		f[i] = strings.ReplaceAll(c, `\|`, "|")
	}
	return row{name: f[0], bug: f[1], cost: f[2], lane: f[3], says: f[4], seeds: f[5], took: f[6]}, true
}

// The table is between these lines.
const (
	tableBegin = "<!-- mutants: written by make mutants -->"
	tableEnd   = "<!-- end of mutants -->"
)

// cutTable splits a document into the text before the table, its rows, and the text after it.
func cutTable(text string) (before string, rows map[string]row, after string, err error) {
	before, rest, ok := strings.Cut(text, tableBegin+"\n")
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", nil, "", fmt.Errorf("there is no table between the lines %q and %q", tableBegin, tableEnd)
	}
	rows = map[string]row{}
	for line := range strings.Lines(table) {
		if r, ok := readRow(strings.TrimSpace(line)); ok && r.name != "mutant" && !strings.HasPrefix(r.name, "---") {
			rows[r.name] = r
		}
	}
	return before, rows, after, nil
}

// writeTable puts new rows into the table of a document. Rows of mutants that were not run stay, those of
// removed mutants are removed.
func writeTable(path string, all []*mutant, fresh map[string]row) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rows, after, err := cutTable(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var b strings.Builder
	b.WriteString(before + tableBegin + "\n| mutant | bug | what it would cost | found by | where | seeds | seconds |\n|---|---|---|---|---|---|---|\n")
	for _, m := range all {
		r, ok := fresh[m.Name]
		if !ok {
			r, ok = rows[m.Name]
		}
		if !ok || r.name == "" {
			r = row{m.Name, m.Bug, m.Cost, notFound, "-", "-", "-"}
		}
		r.bug, r.cost = m.Bug, m.Cost
		b.WriteString(r.String() + "\n")
	}
	b.WriteString(tableEnd + after)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
