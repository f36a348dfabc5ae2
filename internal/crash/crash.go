// Package crash makes panics in the core of the server fatal.
//
// In: a panic on any goroutine of the server core, also on one whose starter would recover
// it, as net/http does. Out: the stack on standard error, the reason as the last line of
// the log, exit code 2. Always true: the locks that the panicking goroutine holds are still
// held when the process exits, so no other goroutine sees its half-finished changes. A
// member's files survive an exit at any moment.
package crash

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// ExitCode is the exit code that the Go runtime uses for a panic.
const ExitCode = 2

var (
	dying  atomic.Bool
	logger atomic.Pointer[zap.Logger]
)

// SetLogger sets the log that gets the reason; without one it goes to standard error.
func SetLogger(lg *zap.Logger) {
	logger.Store(lg.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel))) // the stack goes to standard error
}

// Guard exits the process if the function that defers it panics.
func Guard() {
	if v := recover(); v != nil {
		end(v, debug.Stack())
	}
}

// Guarded returns a function that calls f and defers Guard.
func Guarded(f func()) func() {
	return func() {
		defer Guard()
		f()
	}
}

// Below is the prefix of the names of functions in which a panic is always fatal, whoever
// called them: state that they share with other goroutines may be inconsistent.
const Below = "quorate/internal/server."

// Handler wraps h. A panic in it that passed through a function of Below exits the process;
// others only abort the request, as net/http does.
func Handler(h http.Handler) http.Handler { return handler(h, Below) }

func handler(h http.Handler, below string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); (!ok || !errors.Is(err, http.ErrAbortHandler)) && passed(below) {
				end(v, debug.Stack())
			}
			panic(v)
		}()
		h.ServeHTTP(w, r)
	})
}

// passed reports whether the panic on this goroutine passed through a function whose name
// begins with prefix.
func passed(prefix string) bool {
	pcs := make([]uintptr, 256)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, prefix) {
			return true
		}
		if !more {
			return false
		}
	}
}

// end logs the panic and exits the process. Further panics block until it has exited.
func end(v any, stack []byte) {
	if !dying.CompareAndSwap(false, true) {
		select {}
	}
	reason := fmt.Sprint(v)
	if err, ok := v.(runtime.Error); ok {
		reason = err.Error()
	}
	fmt.Fprintf(os.Stderr, "panic: %s\n\n%s\n", reason, bytes.TrimSpace(stack))
	if lg := logger.Load(); lg != nil {
		lg.Error("the process exits because a part of it has failed: "+reason, zap.String("panic", reason))
		lg.Sync()
	} else {
		fmt.Fprintf(os.Stderr, "the process exits because a part of it has failed: %s\n", strings.ReplaceAll(reason, "\n", " "))
	}
	os.Exit(ExitCode)
}
