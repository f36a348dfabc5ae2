package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
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
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", l.title, l.unit,
			number(l.ours), number(l.etcd), l.ratioText(), l.bound(l.budget), l.bound(l.required), l.verdict())
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

// describeBinary says what a server calls itself and which Go built it.
func describeBinary(path string) string {
	name := "(does not tell its version)"
	if out, err := exec.Command(path, "--version").Output(); err == nil {
		name = firstLine(string(bytes.TrimSpace(out)))
	}
	if info, err := buildinfo.ReadFile(path); err == nil {
		name += ", " + info.GoVersion
	}
	return name
}

// writeDocument replaces what stands between the markers; the prose around them is kept.
func writeDocument(path, table string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	before, rest, ok := strings.Cut(string(doc), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers for the table", path)
	}
	text := before + beginMark + "\n\n" + table + "\n" + endMark + after
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	return nil
}
