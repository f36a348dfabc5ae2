package httpapi

import (
	"net/http"
	"os"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"quorate/internal/build"
	"quorate/internal/descriptors"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// registerProcess registers the process metrics, once, in the registry shared by all members
// of the process.
var registerProcess = sync.OnceFunc(func() {
	metrics.Registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "os_fd_limit", Help: "File descriptor limit"},
			func() float64 { return float64(descriptors.Limit()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "os_fd_used", Help: "File descriptors in use"},
			func() float64 { return float64(filesUsed()) }),
	)
})

// HandleMetrics serves all registered metrics at path.
func HandleMetrics(mux *http.ServeMux, path string) {
	registerProcess()
	h := promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{})
	mux.Handle(path, promhttp.InstrumentMetricHandler(metrics.Registry, h))
}

// Feature is a feature gate with its state.
type Feature struct {
	Name    string
	Stage   string // ALPHA or BETA
	Enabled bool
}

// SetInfo sets the metrics whose labels describe the process: versions, member ID and
// feature gates.
func SetInfo(memberID ids.Member, features []Feature) {
	metrics.ServerVersion.WithLabelValues(build.EtcdVersion).Set(1)
	metrics.ServerGoVersion.WithLabelValues(runtime.Version()).Set(1)
	metrics.ServerID.WithLabelValues(memberID.String()).Set(1)
	for _, f := range features {
		enabled := 0.0
		if f.Enabled {
			enabled = 1
		}
		metrics.ServerFeatureEnabled.WithLabelValues(f.Name, f.Stage).Set(enabled)
	}
}

// filesUsed returns the number of open files of the process, 0 if unknown.
func filesUsed() int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names) - 1 // without dir itself
}
