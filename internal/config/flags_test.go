package config

import (
	"bufio"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every flag that etcd has had since 3.4 is accepted, and has a test that names it or a
// line in docs/differences.md. Flags that etcd 3.7 has dropped and that have no use are
// rejected, as in etcd.
func TestEveryFlagIsAccountedFor(t *testing.T) {
	const root = "../.."
	differences, err := os.ReadFile(filepath.Join(root, "docs/differences.md"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("testdata/flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs := newFlagSet(Default())
	listed, known := map[string]bool{}, map[string]bool{}
	for _, name := range ignoredNames {
		known[name] = true // in etcd, too
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if len(fields) != 4 {
			t.Fatalf("line %q", s.Text())
		}
		name, must, proof := fields[0], fields[1] == "S" || fields[2] == "3.7", fields[3]
		listed[name] = true
		if fields[2] == "3.7" {
			known[name] = true
		}
		if fs.Lookup(name) == nil {
			if must || proof != "rejected" {
				t.Errorf("--%s is not taken", name)
			}
			continue
		}
		switch proof {
		case "rejected":
			t.Errorf("--%s is taken, and said to be rejected", name)
		case "differences":
			if !strings.Contains(string(differences), "--"+name) {
				t.Errorf("--%s has no effect test and no line in docs/differences.md", name)
			}
		default:
			text, err := os.ReadFile(filepath.Join(root, proof))
			if err != nil || !strings.Contains(string(text), strings.TrimPrefix(name, "peer-")) { // tests of TLS put the kind in front
				t.Errorf("--%s: %s does not test it: %v", name, proof, err)
			}
		}
	}
	// docs/differences.md names the flags that etcd 3.7 does not accept.
	fs.VisitAll(func(f *flag.Flag) {
		family, _, _ := strings.Cut(f.Name, "-")
		if !known[f.Name] && !strings.Contains(string(differences), "`--"+f.Name) && !strings.Contains(string(differences), "`--"+family+"-*`") {
			t.Errorf("--%s is not of etcd 3.7, and has no line in docs/differences.md", f.Name)
		}
	})
	for _, o := range options {
		if !listed[o.name] && o.name != "join" {
			t.Errorf("--%s is not in testdata/flags.txt", o.name)
		}
	}
}

// The sample at the root is a valid configuration, and so is every key that it shows.
func TestSample(t *testing.T) {
	text, err := os.ReadFile("../../etcd.conf.yml.sample")
	if err != nil {
		t.Fatal(err)
	}
	r := parse(t, nil, nil, string(text))
	if r.code != -1 {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	if _, err := r.c.InitialMembers(t.Context()); err != nil {
		t.Error(err)
	}
	// With the commented-out keys enabled it means the same: these are the defaults.
	var on strings.Builder
	for line := range strings.Lines(string(text)) {
		if key, _, ok := strings.Cut(strings.TrimPrefix(line, "#"), ":"); strings.HasPrefix(line, "#") && ok && !strings.HasPrefix(line, "# ") && !strings.ContainsAny(strings.TrimSpace(key), " ") {
			line = line[1:]
		}
		on.WriteString(line)
	}
	full := parse(t, nil, nil, on.String())
	if full.code != -1 {
		t.Fatalf("with every key: exit %d: %s", full.code, full.stderr)
	}
	if unknown := full.logged("unknown key in the configuration file"); len(unknown) > 0 {
		t.Errorf("the sample has keys that mean nothing: %v", unknown)
	}
	for _, o := range options {
		if got, want := textOf(o, full.c), textOf(o, r.c); got != want && o.name != "feature-gates" {
			t.Errorf("%s: the sample shows %q, the default is %q", o.name, got, want)
		}
	}
}
