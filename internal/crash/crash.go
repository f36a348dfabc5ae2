// Package crash ends the process at a panic that nobody may survive.
//
// In: a panic on any goroutine below the edges, also on one whose starter would
// recover it, as net/http does. Out: the stack on standard error, the reason as the
// last line of the log, exit code 2. Always true: the locks that the panicking
// goroutine holds are still held when the process ends, so nobody sees what it left
// half done; a member's files are made for an end at any moment.
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

// ExitCode is that of Go's own end at a panic.
const ExitCode = 2

var (
	dying  atomic.Bool
	logger atomic.Pointer[zap.Logger]
)

// SetLogger chooses the log that is told; without one, standard error is.
func SetLogger(lg *zap.Logger) {
	logger.Store(lg.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel))) // the stack stands apart
}

// Guard is to be deferred by what must not be survived if it panics.
func Guard() {
	if v := recover(); v != nil {
		end(v, debug.Stack())
	}
}

// Guarded returns f under Guard, for a goroutine.
func Guarded(f func()) func() {
	return func() {
		defer Guard()
		f()
	}
}

// Below is the part of the process whose panics end it, whoever called: what it
// shares with all others may be half done. Names of functions begin with it.
const Below = "quorate/internal/server."

// Handler is h, but a panic in it that comes from Below ends the process. Others
// end the request alone, by net/http.
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

// passed reports whether the panic on this goroutine came through a function whose
// name begins with prefix.
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

// end ends the process. Only the first panic does; others wait for that.
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
		lg.Error("the process ends, as a part of it has failed: "+reason, zap.String("panic", reason))
		lg.Sync()
	} else {
		fmt.Fprintf(os.Stderr, "the process ends, as a part of it has failed: %s\n", strings.ReplaceAll(reason, "\n", " "))
	}
	os.Exit(ExitCode)
}
