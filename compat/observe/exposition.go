package observe

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// sample is one line of a scrape. The name is that of the family with the line's suffix
// (_bucket, _sum, _count) kept apart.
type sample struct {
	suffix string
	labels map[string]string
	value  float64
}

// family is the content below one # TYPE line.
type family struct {
	name, kind string
	samples    []sample
}

// scrape is one answer of /metrics by family name.
type scrape map[string]*family

// parseExposition reads the Prometheus text format, version 0.0.4, as client_golang writes it: samples follow
// the # TYPE line of their family.
func parseExposition(r io.Reader) (scrape, error) {
	out := scrape{}
	var current *family
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, ok := strings.Cut(rest, " ")
			if !ok || out[name] != nil {
				return nil, fmt.Errorf("line %d: bad or repeated type of %q", n, name)
			}
			current = &family{name: name, kind: kind}
			out[name] = current
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if current == nil {
			return nil, fmt.Errorf("line %d: sample before any type", n)
		}
		s, err := parseSample(line, current.name)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		current.samples = append(current.samples, s)
	}
	return out, lines.Err()
}

func parseSample(line, name string) (sample, error) {
	rest, ok := strings.CutPrefix(line, name)
	if !ok {
		return sample{}, fmt.Errorf("sample %q below the type of %s", line, name)
	}
	s := sample{labels: map[string]string{}}
	i := strings.IndexAny(rest, "{ ")
	if i < 0 {
		return s, fmt.Errorf("no value in %q", line)
	}
	s.suffix, rest = rest[:i], rest[i:]
	if rest[0] == '{' {
		rest = rest[1:]
		for rest != "" && rest[0] != '}' {
			label, tail, ok := strings.Cut(rest, "=")
			if !ok {
				return s, fmt.Errorf("no value of label in %q", line)
			}
			quoted, err := strconv.QuotedPrefix(tail)
			if err != nil {
				return s, fmt.Errorf("value of label %s in %q: %w", label, line, err)
			}
			if s.labels[label], err = strconv.Unquote(quoted); err != nil {
				return s, fmt.Errorf("value of label %s in %q: %w", label, line, err)
			}
			rest = strings.TrimPrefix(tail[len(quoted):], ",")
		}
		rest = strings.TrimPrefix(rest, "}")
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
	if err != nil {
		return s, fmt.Errorf("value of %q: %w", line, err)
	}
	s.value = v
	return s, nil
}

// volatile are labels whose values differ between two runs of the same server.
var volatile = []string{"To", "From", "Local", "Remote", "server_id", "server_go_version", "version"}

// key names a sample within its family, with volatile values left out. The label version is volatile only where
// it is that of a toolchain.
func (f *family) key(s sample) string {
	var b strings.Builder
	b.WriteString(f.name + s.suffix)
	sep := "{"
	for _, l := range slices.Sorted(maps.Keys(s.labels)) {
		v := s.labels[l]
		if slices.Contains(volatile, l) && (l != "version" || f.name == "go_info") {
			v = "*"
		}
		fmt.Fprintf(&b, "%s%s=%q", sep, l, v)
		sep = ","
	}
	if sep == "," {
		b.WriteString("}")
	}
	return b.String()
}

// values sums the samples under each key over all families. A histogram's buckets and sum are
// left out: its count says how often, and how long is not comparable.
func (s scrape) values() map[string]float64 {
	out := map[string]float64{}
	for _, f := range s {
		for _, x := range f.samples {
			if f.kind == "histogram" && x.suffix != "_count" {
				continue
			}
			out[f.key(x)] += x.value
		}
	}
	return out
}

// bounds lists the bucket bounds of a histogram, or the quantiles of a summary, as text in order.
func (f *family) bounds() []string {
	seen := map[string]bool{}
	for _, x := range f.samples {
		for _, l := range []string{"le", "quantile"} {
			if v, ok := x.labels[l]; ok {
				seen[v] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// labelNames lists the names of the labels that any sample of the family has.
func (f *family) labelNames() []string {
	seen := map[string]bool{}
	for _, x := range f.samples {
		for l := range x.labels {
			seen[l] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
