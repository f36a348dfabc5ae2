package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lane is a check that may find a bug: the tests of a package below internal/, all or those that match a
// pattern, or a test of the simulator with a number of seeds.
type lane struct {
	pkg, pattern string
	seeds        int // 0: the test has none
	text         string
}

// seeded are the tests that run seeds, by the name of their lane.
var seeded = map[string]string{
	"sim":     "^TestSim$",
	"orders":  "^TestSimOrders$",
	"crash":   "^TestCrash$",
	"stall":   "^TestStalledLeader$",
	"rivals":  "^TestRivals$",
	"lostlog": "^TestLostLog$",
}

// parseLane reads "unit PACKAGE [PATTERN]", or "sim SEEDS" and the like.
func parseLane(s string) (lane, error) {
	f := strings.Fields(s)
	l := lane{text: strings.Join(f, " ")}
	if len(f) >= 2 && f[0] == "unit" {
		l.pkg, l.pattern = f[1], strings.Join(f[2:], " ")
		return l, nil
	}
	if len(f) == 2 && seeded[f[0]] != "" {
		n, err := strconv.Atoi(f[1])
		if err == nil && n > 0 {
			l.pkg, l.pattern, l.seeds = "sim", seeded[f[0]], n
			return l, nil
		}
	}
	return l, fmt.Errorf("%q is no lane", s)
}

func (l lane) String() string { return l.text }

// finding describes how a lane found a bug.
type finding struct {
	lane   lane
	seeds  int // time until it was found; 0 if no lane found it
	took   time.Duration
	says   string // the test that failed, or the panic
	output string
}

func (f *finding) after() string {
	if f.seeds == 0 {
		return ""
	}
	return fmt.Sprintf("seed %d, ", f.seeds)
}

// runner runs lanes over mutants until ctx ends.
type runner struct {
	ctx        context.Context
	root, work string
	n          int
	clean      map[string]int // number of seeds, or 1, that a lane has passed without a bug
}

// run runs the lanes of a mutant until one finds it; it returns nil if none does.
func (r *runner) run(m *mutant) (*finding, error) {
	files, err := m.apply(r.root)
	if err != nil {
		return nil, err
	}
	overlay, err := r.overlay(files)
	if err != nil {
		return nil, err
	}
	for _, l := range m.Lanes {
		f, err := r.test(l, l.seeds, overlay)
		if err != nil || f == nil {
			if err != nil {
				return nil, err
			}
			continue
		}
		if need := max(f.seeds, 1); r.clean[l.text] < need {
			if g, err := r.test(l, f.seeds, ""); err != nil || g != nil {
				return nil, fmt.Errorf("%v fails without the bug as well: %v %+v", l, err, g)
			}
			r.clean[l.text] = need
		}
		return f, nil
	}
	return nil, nil
}

// overlay writes the changed files and the overlay description for the compiler.
func (r *runner) overlay(files map[string]string) (path string, err error) {
	r.n++
	replace := map[string]string{}
	for file, text := range files {
		to := filepath.Join(r.work, fmt.Sprintf("%d-%s", r.n, strings.ReplaceAll(file, "/", "-")))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(r.root, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(r.work, fmt.Sprintf("%d.json", r.n))
	return path, os.WriteFile(path, b, 0o600)
}

// Limits of a lane: its time, and the memory of its process in KiB, because a bug may loop or allocate without
// end.
const (
	unitTime = 2 * time.Minute
	seedTime = 12 * time.Second // for each seed, in addition
	memory   = 12 << 20
)

// build compiles the tests of a package with the overlay; without one, only once.
func (r *runner) build(pkg, overlay string) (bin string, err error) {
	args := []string{"test", "-c", "-ldflags=-s -w"}
	if overlay == "" {
		bin = filepath.Join(r.work, "clean-"+strings.ReplaceAll(pkg, "/", "-")+".test")
		if _, err := os.Stat(bin); err == nil {
			return bin, nil
		}
	} else {
		bin = filepath.Join(r.work, "mutant.test")
		args = append(args, "-overlay", overlay)
	}
	cmd := group(r.ctx, "go", append(args, "-o", bin, "./internal/"+pkg)...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not build: %w: %s", err, out)
	}
	return bin, nil
}

// group is a command in a process group of its own, which is killed as a whole: what a test has started must
// not outlive it when it loops.
func group(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second // a grandchild that holds the output has left the group
	return cmd
}

// test runs a lane with the overlay; nil means that it has found nothing.
func (r *runner) test(l lane, seeds int, overlay string) (*finding, error) {
	bin, err := r.build(l.pkg, overlay)
	if err != nil {
		return nil, err
	}
	limit := unitTime
	args := []string{"-test.v", "-test.failfast"}
	if l.pattern != "" {
		args = append(args, "-test.run", l.pattern)
	}
	if l.seeds > 0 {
		limit = time.Minute + time.Duration(seeds)*seedTime
		args = append(args, "-seed=1", fmt.Sprintf("-seeds=%d", seeds), "-shrink=0")
	}
	args = append([]string{"-c", fmt.Sprintf(`ulimit -v %d; exec "$0" "$@"`, memory), bin, "-test.timeout", limit.String()}, args...)
	ctx, cancel := context.WithTimeout(r.ctx, limit+time.Minute)
	defer cancel()
	cmd := group(ctx, "sh", args...)
	cmd.Dir = filepath.Join(r.root, "internal", l.pkg)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what the tests have left behind, in most cases nothing
	}
	if r.ctx.Err() != nil {
		return nil, fmt.Errorf("%v was interrupted", l)
	}
	if err == nil {
		if !strings.Contains(string(out), "\n--- PASS") && !strings.Contains(string(out), "--- PASS") {
			return nil, fmt.Errorf("%v runs no test", l)
		}
		return nil, nil
	}
	f := l.found(string(out), seeds)
	if f != nil {
		f.took = time.Since(start)
	}
	return f, nil
}

// found reads the output of a lane that has failed. It returns nil if no seed has failed and all the lane says
// is that something never happened in any of them: a bug often prevents that, but so does a lane that no longer
// tests it.
func (l lane) found(out string, seeds int) *finding {
	if l.seeds > 0 && missed.MatchString(out) && !failedSeed.MatchString(out) && !panicked.MatchString(out) {
		return nil
	}
	f := &finding{lane: l, says: says(out), output: out}
	if l.seeds > 0 {
		f.seeds = min(seedOf(out), seeds)
	}
	return f
}

var (
	failedTest = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)
	panicked   = regexp.MustCompile(`(?m)^(panic: .*|fatal error: .*)$`)
	failedSeed = regexp.MustCompile(`seed (\d+) (?:at|gave)|seed (\d+): (?:only|nothing|no|after|client|the) `)
	missed     = regexp.MustCompile(`prove nothing about`) // what a lane says of all its seeds together
	passedSeed = regexp.MustCompile(`seed (\d+): (?:\d+ (?:events|keys)|of \d+ members)`)
)

// says describes in one line what failed.
func says(out string) string {
	if strings.Contains(out, "panic: test timed out") {
		return "hangs"
	}
	var parts []string
	if m := failedTest.FindAllStringSubmatch(out, -1); m != nil {
		parts = append(parts, m[len(m)-1][1])
	}
	if m := panicked.FindString(out); m != "" {
		if len(m) > 100 {
			m = m[:100]
		}
		parts = append(parts, m)
	}
	if parts == nil {
		return "ended with an error"
	}
	return strings.Join(parts, ": ")
}

// seedOf returns the seed that failed: the one that is named, or the one after those that passed.
func seedOf(out string) int {
	if m := failedSeed.FindStringSubmatch(out); m != nil {
		n, _ := strconv.Atoi(m[1] + m[2])
		return n
	}
	n := 0
	for _, m := range passedSeed.FindAllStringSubmatch(out, -1) {
		k, _ := strconv.Atoi(m[1])
		n = max(n, k)
	}
	return n + 1
}
