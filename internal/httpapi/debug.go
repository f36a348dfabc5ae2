package httpapi

import (
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/pprof"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/net/trace"

	"quorate/internal/descriptors"
)

// discardLog drops net/http's messages about broken requests.
var discardLog = log.New(io.Discard, "etcdhttp", 0)

// mutexFraction is the sampling rate of contended mutexes (one in five) once profiling is on.
const mutexFraction = 5

// varsHandler serves /debug/vars: the published variables, the open file limit and the raft
// status, sorted by name.
func varsHandler(raftStatus func() json.RawMessage) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !allow(w, r, http.MethodGet) {
			return
		}
		vars := []string{
			fmt.Sprintf("%q: %d", "file_descriptor_limit", descriptors.Limit()),
			fmt.Sprintf("%q: %s", "raft.status", jsonOrNull(raftStatus())),
		}
		expvar.Do(func(kv expvar.KeyValue) {
			vars = append(vars, fmt.Sprintf("%q: %s", kv.Key, kv.Value))
		})
		slices.Sort(vars)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprintf(w, "{\n%s\n}\n", strings.Join(vars, ",\n"))
	}
}

func jsonOrNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

// HandlePprof serves the profiles of the process below /debug/pprof/.
func HandlePprof(mux *http.ServeMux) {
	if runtime.SetMutexProfileFraction(-1) == 0 {
		runtime.SetMutexProfileFraction(mutexFraction)
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index) // also serves every named profile below this path
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

func handleTrace(mux *http.ServeMux) {
	mux.HandleFunc("/debug/requests", func(w http.ResponseWriter, r *http.Request) { trace.Render(w, r, true) })
	mux.HandleFunc("/debug/events", func(w http.ResponseWriter, r *http.Request) { trace.RenderEvents(w, r, true) })
}
