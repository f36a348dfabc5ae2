package ctl

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The surface of a tool is a line for each command, "lease grant", and one for each of its
// flags, "lease timetolive --keys bool false"; global flags are listed under "options".
// testdata/surface.txt has etcdctl's; with -etcdctl it is read from that binary's help.
func TestSurface(t *testing.T) {
	const file = "testdata/surface.txt"
	if *flagEtcdctl != "" {
		if err := os.WriteFile(file, []byte(strings.Join(surfaceOf(t, *flagEtcdctl), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(surface(t), "\n") + "\n"; got != string(want) {
		t.Errorf("%s", diff.Diff("etcdctl", want, "ours", []byte(got)))
	}
}

// surface returns that of this program.
func surface(t *testing.T) []string {
	var lines []string
	add := func(path string, f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		short := ""
		if f.Shorthand != "" {
			short = "-" + f.Shorthand + " "
		}
		def := f.DefValue
		switch def {
		case "", "0", "[]":
			def = "-"
		}
		kind, _ := pflag.UnquoteUsage(f)
		if kind == "" {
			kind = "bool"
		}
		lines = append(lines, fmt.Sprintf("%s %s--%s %s %s", path, short, f.Name, kind, def))
	}
	root := (&app{}).rootCommand()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { add("options", f) })
	root.InitDefaultHelpCmd()
	walkCommands(root, func(cmd *cobra.Command) {
		if cmd == root {
			return
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "etcdctl ")
		lines = append(lines, path)
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { add(path, f) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			if root.PersistentFlags().Lookup(f.Name) == nil {
				add(path, f)
			}
		})
	})
	slices.Sort(lines)
	return lines
}

func walkCommands(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		walkCommands(c, f)
	}
}

var (
	helpCommand = regexp.MustCompile(`(?m)^  ([a-z-]+) +[^ ]`)
	helpFlag    = regexp.MustCompile(`(?m)^ +(?:(-[a-zA-Z]), +)?--([a-z-]+)(?: ([a-z]+))?   +.*?(?:\(default (\[[^\]]*\]|"[^"]*"|[^)]*)\))?$`)
)

// surfaceOf returns that of a binary, from its help.
func surfaceOf(t *testing.T, binary string) []string {
	help := func(args ...string) string {
		out, err := exec.Command(binary, args...).Output()
		if err != nil {
			t.Fatalf("%s %v: %v", binary, args, err)
		}
		return string(out)
	}
	var lines []string
	flags := func(path, text string) {
		_, text, _ = strings.Cut(text, "Flags:\n")
		for _, m := range helpFlag.FindAllStringSubmatch(text, -1) {
			if m[2] == "help" {
				continue
			}
			short, kind, def := m[1], m[3], strings.Trim(m[4], `"`)
			if short != "" {
				short += " "
			}
			switch kind {
			case "":
				kind = "bool"
				if def == "" {
					def = "false"
				}
			}
			if def == "" || def == "0" {
				def = "-"
			}
			lines = append(lines, fmt.Sprintf("%s %s--%s %s %s", path, short, m[2], kind, def))
		}
	}
	var walk func(path []string)
	walk = func(path []string) {
		text := help(append(slices.Clone(path), "--help")...)
		if name := strings.Join(path, " "); name != "" {
			lines = append(lines, name)
			flags(name, text)
		}
		sections := strings.Split(text, "\n\n")
		for _, section := range sections {
			title, list, _ := strings.Cut(section, "\n")
			if !strings.HasSuffix(title, "ommands:") && !strings.HasSuffix(title, " commands") {
				continue
			}
			for _, m := range helpCommand.FindAllStringSubmatch(list, -1) {
				walk(append(slices.Clone(path), m[1]))
			}
		}
	}
	walk(nil)
	flags("options", "Flags:\n"+help("options"))
	slices.Sort(lines)
	return slices.Compact(lines)
}

// Every command and every flag is in a transcript that was recorded from etcdctl, here or
// in the lane with live servers: none was forgotten. The transcripts check the texts.
func TestTranscriptsCoverSurface(t *testing.T) {
	files, err := filepath.Glob("testdata/etcdctl/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	live, err := filepath.Glob("../../compat/tools/testdata/etcdctl37/*.txt")
	if err != nil || len(live) == 0 {
		t.Fatalf("no transcripts with live servers (%v)", err)
	}
	elsewhere := map[string]string{
		"options --debug":              "TestDebug: it writes gRPC's log",
		"options --discovery-srv":      "TestDiscovery: it asks the machine's name server",
		"options --discovery-srv-name": "TestDiscovery",
		"endpoint hashkv --cluster":    "the flag of endpoint",
		"endpoint health --cluster":    "the flag of endpoint",
		"check perf --auto-compact":    "TestCheckPerf: the real one takes a minute",
		"check perf --auto-defrag":     "TestCheckPerf",
	}
	for _, file := range append(append(files, live...), "testdata/own/help.txt") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "$ ") || strings.HasPrefix(line, "& ") || strings.HasPrefix(line, "type ") || strings.HasPrefix(line, "< ") || strings.HasPrefix(line, "env ") {
				lines = append(lines, strings.TrimSpace(line)+" ")
			}
		}
	}
	for _, entry := range surface(t) {
		words := strings.Fields(entry)
		i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "-") })
		if i < 0 { // a command
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, " "+entry+" ") }) {
				t.Errorf("no transcript has the command %q", entry)
			}
			continue
		}
		path, flag := strings.Join(words[:i], " ")+" ", words[i]
		long := words[len(words)-3]
		found := slices.ContainsFunc(lines, func(l string) bool {
			if path != "options " && !strings.Contains(l, " "+path) {
				return false
			}
			return strings.Contains(l, " "+long+" ") || strings.Contains(l, " "+long+"=") || strings.Contains(l, " "+flag+" ") ||
				path == "options " && strings.Contains(l, envName(strings.TrimPrefix(long, "--"))+"=")
		})
		if !found && elsewhere[path+long] == "" {
			t.Errorf("no transcript has %s%s", path, long)
		}
	}
}

// Every global flag has its variable, and there are no other variables.
func TestGlobalFlagsHaveVariables(t *testing.T) {
	values := map[string]string{"bool": "true", "duration": "7s", "int": "7", "string": "x", "stringSlice": "a,b"}
	root := (&app{}).rootCommand()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) {
		value := values[f.Value.Type()]
		if f.DefValue == value {
			value = "false"
		}
		a := &app{Process: Process{Env: []string{envName(f.Name) + "=" + value}}}
		root := a.rootCommand()
		if err := a.flagsFromEnv(root.PersistentFlags()); err != nil {
			t.Errorf("%s: %v", envName(f.Name), err)
		}
		got := root.PersistentFlags().Lookup(f.Name).Value.String()
		if got == f.DefValue || strings.Trim(got, "[]") != value {
			t.Errorf("%s=%s makes --%s %s", envName(f.Name), value, f.Name, got)
		}
	})
}
