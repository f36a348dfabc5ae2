package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	beginMark = "<!-- bench: the table below is written by `make bench` -->"
	endMark   = "<!-- bench: end -->"
)

// report renders the facts of the run and the table.
func report(ls []line, s scale, sides [2]*side, now time.Time, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Scale `%s`, %s, %d cores, %s/%s, generator and servers on the same machine; %.0f minutes.\n\n",
		s.name, now.Format("2006-01-02"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, math.Ceil(took.Minutes()))
	for _, sd := range sides {
		fmt.Fprintf(&b, "- %s: %s\n", sd.name, describeBinary(sd.binary))
	}
	b.WriteString("\n| work | unit | ours | etcd | ratio | budget | required now | verdict |\n")
	b.WriteString("|---|---|---:|---:|---:|---:|---:|---|\n")
	for _, l := range ls {
		b.WriteString(l.markdown() + "\n")
	}
	for _, l := range ls {
		if l.err != "" {
			fmt.Fprintf(&b, "\n%s failed: %s\n", l.title, firstLine(l.err))
		}
	}
	return b.String()
}

func (l line) ratioText() string {
	if l.absolute {
		return "-"
	}
	return number(l.ratio)
}

func (l line) bound(v float64) string {
	if v == 0 {
		return "-"
	}
	sign := "≤"
	if l.higher {
		sign = "≥"
	}
	suffix := "×"
	if l.absolute {
		suffix = " " + l.unit
	}
	return fmt.Sprintf("%s %g%s", sign, v, strings.TrimSuffix(suffix, " ×"))
}

func (l line) verdict() string {
	switch {
	case l.err != "":
		return "FAILED"
	case !l.pass():
		return "**worse**"
	case l.budget == 0:
		return "pass"
	case l.holds(l.budget):
		return "pass, budget met"
	}
	return "pass, budget not met"
}

// number prints three significant digits without an exponent.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	case a >= 0.01:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.5f", v)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// describeBinary returns the version that a server reports and the Go release that built it.
func describeBinary(path string) string {
	name := "(version unknown)"
	if out, err := exec.Command(path, "--version").Output(); err == nil {
		name = firstLine(string(bytes.TrimSpace(out)))
	}
	if info, err := buildinfo.ReadFile(path); err == nil {
		name += ", " + info.GoVersion
	}
	return name
}

// markdown renders the row of a line.
func (l line) markdown() string {
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s |", l.title, l.unit,
		number(l.ours), number(l.etcd), l.ratioText(), l.bound(l.budget), l.bound(l.required), l.verdict())
}

// apart begins the lines that name the groups measured in a separate run.
const apart = "Measured separately: "

// merge replaces the rows of some groups in an existing table, and keeps the figures of the others.
func merge(old string, ls []line, s scale, groups []string, sides [2]*side, now time.Time) (string, error) {
	if !strings.Contains(old, "Scale `"+s.name+"`") {
		return "", fmt.Errorf("the document has no table of scale %s into which to put the groups %s", s.name, strings.Join(groups, ", "))
	}
	var head, tail []string
	rowOf := map[string]string{} // by title
	inTable := false
	for _, text := range strings.Split(strings.TrimSpace(old), "\n") {
		if strings.HasPrefix(text, "|---") {
			head, inTable = append(head, text), true
			continue
		}
		title, isRow := strings.CutPrefix(text, "| ")
		title, _, _ = strings.Cut(title, " | ")
		switch {
		case isRow && inTable:
			rowOf[title] = text
		case strings.HasPrefix(text, apart):
			if name, _, _ := strings.Cut(strings.TrimPrefix(text, apart), ","); !slices.Contains(groups, name) {
				tail = append(tail, text)
			}
		case !inTable:
			head = append(head, text)
		case strings.Contains(text, " failed: "):
			if title, _, _ := strings.Cut(text, " failed: "); !slices.ContainsFunc(ls, func(l line) bool { return l.title == title }) {
				tail = append(tail, text)
			}
		}
	}
	for _, l := range ls {
		rowOf[l.title] = l.markdown()
		if l.err != "" {
			tail = append(tail, l.title+" failed: "+firstLine(l.err))
		}
	}
	for _, g := range groups {
		tail = append(tail, fmt.Sprintf("%s%s, %s, ours %s.", apart, g, now.Format("2006-01-02"), describeBinary(sides[0].binary)))
	}
	out := head
	for _, w := range rows {
		if text, ok := rowOf[expand(w.title, s)]; ok {
			out = append(out, text)
		}
	}
	for _, text := range tail {
		out = append(out, "", text)
	}
	return strings.Join(out, "\n") + "\n", nil
}

// rewriteDocument replaces the text between two markers; the prose around them stays.
func rewriteDocument(path, begin, end string, change func(old string) (string, error)) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers for the table", path)
	}
	table, err := change(old)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(before+begin+"\n\n"+table+"\n"+end+after), 0o644); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	return nil
}
