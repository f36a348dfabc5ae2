package handbook

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Kinds of steps. Before each command block a page says, in a comment that readers do not see, what the block
// is; a hidden cause stands entirely in such a comment.
const (
	kindDo    = "do"    // run once, and it succeeds
	kindSee   = "see"   // read-only: repeated until it shows what the page shows
	kindFail  = "fail"  // run once, and it fails
	kindCause = "cause" // provokes the symptom; readers have other causes
	kindSaid  = "said"  // log lines that cannot be provoked here: they must be in the sources
	kindSkip  = "skip"  // not run, for the reason given
)

// step is one thing to run, with the expected output.
type step struct {
	line   int
	kind   string
	hosts  []string // hosts; each of them in turn
	script string
	shows  []string // lines
	shown  int      // line of the page on which the first of them is
}

// section is the text below a heading of the second level.
type section struct {
	title   string
	cluster string // initial state; see (*lab).prepare
	steps   []step
}

var (
	directive = regexp.MustCompile(`^<!-- (do|see|fail|said|skip|cluster): (.*?) -->$`)
	hidden    = regexp.MustCompile(`^<!-- cause: (.*)$`)
)

// readPage splits a page of the handbook into its sections.
func readPage(name string) ([]section, error) {
	path := filepath.Join("../../docs/handbook", name)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p := parser{lines: strings.Split(string(b), "\n")}
	if err := p.parse(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, p.at+1, err)
	}
	return p.sections, nil
}

// parser is at a line of a page, with what the last directive said about the next block.
type parser struct {
	lines    []string
	at       int
	sections []section
	kind     string
	word     string
}

func (p *parser) parse() error {
	p.sections = []section{{title: "introduction"}}
	for ; p.at < len(p.lines); p.at++ {
		line := p.lines[p.at]
		current := &p.sections[len(p.sections)-1]
		switch m := directive.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "## "):
			p.sections = append(p.sections, section{title: strings.TrimPrefix(line, "## ")})
		case m != nil && m[1] == "cluster":
			current.cluster = m[2]
		case m != nil:
			p.kind, p.word = m[1], m[2]
		case hidden.MatchString(line):
			where := hidden.FindStringSubmatch(line)[1]
			text, err := p.until("-->")
			if err != nil {
				return err
			}
			current.steps = append(current.steps, step{line: p.at, kind: kindCause, hosts: strings.Fields(where), script: text})
		case strings.HasPrefix(line, "<!--"):
			return fmt.Errorf("no directive of this lane: %s", line)
		case strings.HasPrefix(line, "```"):
			if err := p.block(current, strings.TrimPrefix(line, "```")); err != nil {
				return err
			}
		}
	}
	return nil
}

// block reads a fenced block.
func (p *parser) block(s *section, info string) error {
	line := p.at + 1
	text, err := p.until("```")
	if err != nil {
		return err
	}
	kind, word := p.kind, p.word
	p.kind, p.word = "", ""
	switch {
	case info == "sh" && kind == "", kind == kindSaid && info != "json":
		return fmt.Errorf("a block of %s says neither where it is run nor why it is not", info)
	case kind == kindSkip && word == "":
		return fmt.Errorf("a skip without its reason")
	case kind == kindSkip:
		s.steps = append(s.steps, step{line: line, kind: kindSkip, script: text})
	case kind == kindSaid:
		s.steps = append(s.steps, step{line: line, kind: kindSaid, shows: lines(text)})
	case info == "sh":
		s.steps = append(s.steps, step{line: line, kind: kind, hosts: strings.Fields(word), script: text})
	case info == "text" || info == "json":
		if len(s.steps) == 0 {
			return fmt.Errorf("output without a command before it")
		}
		last := &s.steps[len(s.steps)-1]
		if len(last.shows) > 0 {
			return fmt.Errorf("a second output of one command")
		}
		last.shows, last.shown = lines(text), line
	}
	return nil
}

// until returns the lines before one that is end.
func (p *parser) until(end string) (string, error) {
	var text strings.Builder
	for p.at++; p.at < len(p.lines); p.at++ {
		if p.lines[p.at] == end {
			return text.String(), nil
		}
		text.WriteString(p.lines[p.at] + "\n")
	}
	return "", fmt.Errorf("no %q until the end", end)
}

// lines are the lines of a text that are not empty.
func lines(text string) (out []string) {
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}
