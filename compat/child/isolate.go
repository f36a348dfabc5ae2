package child

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// isolated is set in the environment of a test that runs in its own namespaces.
const isolated = "CHILD_ISOLATED"

// Isolated runs a test in its own mount and network namespaces, in which it may mount and create interfaces:
// nothing of that is visible outside, and it vanishes with the process. Isolated runs the test binary again for
// that. In the second process it returns true and the test goes on; in the first it returns false once the
// second has exited, and the test must return.
//
// Where namespaces are forbidden the test fails if required is set. Otherwise it only logs that it proved
// nothing, because such a machine cannot be made to allow them.
func Isolated(t *testing.T, required bool, args ...string) bool {
	t.Helper()
	if os.Getenv(isolated) == t.Name() {
		return true
	}
	unshare := []string{"--mount", "--net", "--propagation=private"}
	if os.Geteuid() != 0 {
		unshare = append(unshare, "--map-root-user")
	}
	if out, err := exec.Command("unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
		text := fmt.Sprintf("this machine forbids namespaces, so nothing is proved here: unshare: %v: %s", err, strings.TrimSpace(string(out)))
		if required {
			t.Fatal(text)
		}
		t.Log(text)
		return false
	}
	cmd := exec.Command("unshare", append(append(append(unshare, os.Args[0]), os.Args[1:]...),
		append([]string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v=true", "-test.testlogfile="}, args...)...)...)
	cmd.Env = append(os.Environ(), isolated+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if text := string(out); err != nil || !strings.Contains(text, "--- PASS: "+t.Name()) {
		t.Errorf("in its own namespaces: %v\n%s", err, text)
	} else {
		t.Logf("in its own namespaces:\n%s", text)
	}
	return false
}

// Must runs a system program and fails the test unless it succeeds.
func Must(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
