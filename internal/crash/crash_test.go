package crash

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
)

// child runs one of the cases in its own process, as it is to exit.
const child = "QUORATE_CRASH_CHILD"

var cases = map[string]func(){
	"goroutine": func() { go Guarded(func() { panic("on a goroutine") })() },
	"log": func() {
		lg, _ := zap.NewProduction()
		SetLogger(lg)
		go Guarded(func() { panic(errors.New("with a log")) })()
	},
	"below a handler": func() {
		//lint:ignore SA5000 the panic is what is tested
		serve(func() { defer Guard(); var m map[int]int; m[1] = 2 })
	},
	"through a handler": func() { serveBelow(func() { panic("of what is below") }, "quorate/internal/crash.") },
	"two": func() {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(Guarded(func() { panic("one of two") }))
		}
		wg.Wait()
	},
}

// serve asks a server for something whose handler does f.
func serve(f func()) { serveBelow(f, Below) }

func serveBelow(f func(), below string) {
	s := httptest.NewServer(handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { f() }), below))
	defer s.Close()
	if resp, err := http.Get(s.URL); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func TestMain(m *testing.M) {
	if f := cases[os.Getenv(child)]; f != nil {
		f()
		select {} // until the process ends
	}
	os.Exit(m.Run())
}

func TestEnds(t *testing.T) {
	for name, want := range map[string]string{
		"goroutine": "on a goroutine", "log": "with a log", "below a handler": "assignment to entry in nil map",
		"through a handler": "of what is below", "two": "one of two",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), child+"="+name)
			out, err := cmd.CombinedOutput()
			var code *exec.ExitError
			if !errors.As(err, &code) || code.ExitCode() != ExitCode {
				t.Fatalf("ended with %v, want exit code %d:\n%s", err, ExitCode, out)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if last := lines[len(lines)-1]; !strings.Contains(last, want) {
				t.Errorf("last line %q does not name %q", last, want)
			}
			if !strings.Contains(string(out), "crash_test.go") {
				t.Errorf("no stack:\n%s", out)
			}
		})
	}
}

// A handler that panics by itself aborts its request only.
func TestHandlerAlone(t *testing.T) {
	serve(func() { panic("of this request alone") })
	serve(func() { panic(http.ErrAbortHandler) })
}
