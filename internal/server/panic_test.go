package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/membership"
	"quorate/internal/replica"
)

const crashChild = "QUORATE_CRASH_CHILD"

// panicInCore runs a member whose core panics on a goroutine of net/http.
func panicInCore() {
	m, err := Open(context.Background(), Config{
		Name: "a", DataDir: "data", PeerURLs: []string{"http://a:2380"}, ClientURLs: []string{"http://a:2379"},
		Bootstrap: Bootstrap{Initial: []membership.InitialMember{{Name: "a", PeerURLs: []string{"http://a:2380"}}}}, Tokens: auth.TokenOptions{Spec: "simple"}, BcryptCost: 4,
		Timing: Timing{Tick: 10e6, ElectionTicks: 10}, MaxRequestBytes: 1 << 20, FS: vfs.NewMem(), Clock: clock.Real{}, Logger: testLogger,
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	m.Start()
	<-m.Ready()
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		m.driver.event(func(in *replica.Input) { in.Then = append(in.Then, func() { panic("the core is broken") }) })
	}))
	http.Get(s.URL)
}

// A panic in the core ends the process, whichever goroutine drives the core; a member whose
// core stays locked would keep running without serving anything.
func TestPanicInCore(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashChild+"=1")
	out, err := cmd.CombinedOutput()
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != crash.ExitCode {
		t.Fatalf("ended with %v, want exit code %d:\n%s", err, crash.ExitCode, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "the core is broken") {
		t.Errorf("the last line %q does not tell the reason", last)
	}
}
