package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/metrics"
)

// Results of a check in etcd_server_healthchecks_total.
const (
	statusSuccess = "success"
	statusError   = "error"
)

// v2CheckTimeout is etcd's timeout for the read of [Options.CheckV2].
const v2CheckTimeout = time.Second

func handleHealth(mux *http.ServeMux, b Backend, o Options) {
	mux.Handle("/health", healthHandler(b, o))
	livez := probe{kind: "livez", lg: o.Logger, checks: []check{
		{"serializable_read", readCheck(b, true)},
	}}
	readyz := probe{kind: "readyz", lg: o.Logger, checks: []check{
		{"data_corruption", alarmCheck(b, pb.AlarmType_CORRUPT)},
		{"serializable_read", readCheck(b, true)},
		{"linearizable_read", readCheck(b, false)},
		{"non_learner", learnerCheck(b)},
	}}
	readyz.quiet = []check{{"disk_space", roomCheck(b)}}
	livez.install(mux)
	readyz.install(mux)
}

// healthHandler serves /health: healthy if there are no alarms, a leader is known, and a
// read succeeds. A serializable check skips the leader and reads local data, so it checks
// this process rather than the cluster.
func healthHandler(b Backend, o Options) http.HandlerFunc {
	type body struct {
		Health string `json:"health"` // the string "true" or "false"
		Reason string `json:"reason"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if !allow(w, r, http.MethodGet) {
			o.Logger.Warn("/health error", zap.Int("status-code", http.StatusMethodNotAllowed))
			return
		}
		query := r.URL.Query()
		reason := unhealthy(r.Context(), b, o, query["exclude"], query.Get("serializable") == "true")
		data, err := json.Marshal(body{Health: fmt.Sprint(reason == ""), Reason: reason})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if reason != "" {
			metrics.ServerHealthFailures.Inc()
			http.Error(w, string(data), http.StatusServiceUnavailable)
			o.Logger.Warn("/health error", zap.String("output", string(data)), zap.Int("status-code", http.StatusServiceUnavailable))
			return
		}
		metrics.ServerHealthSuccess.Inc()
		w.Write(data)
	}
}

// unhealthy returns why the member is unhealthy, or "".
func unhealthy(ctx context.Context, b Backend, o Options, exclude []string, serializable bool) string {
	for _, a := range b.Alarms() {
		if !contains(exclude, a.GetAlarm().String()) {
			o.Logger.Warn("serving /health false due to an alarm", zap.Stringer("alarm", a))
			return alarmReason(a.GetAlarm())
		}
	}
	if !serializable && b.Leader() == 0 {
		o.Logger.Warn("serving /health false; no leader")
		return "RAFT NO LEADER"
	}
	if o.CheckV2 != nil {
		ctx, cancel := context.WithTimeout(ctx, v2CheckTimeout)
		defer cancel()
		if err := o.CheckV2(ctx); err != nil {
			return fmt.Sprintf("QGET ERROR:%s", rpctypes.ErrorDesc(err))
		}
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, o.RequestTimeout)
	defer cancel()
	if err := b.CheckRead(ctx, serializable); err != nil {
		o.Logger.Warn("serving /health false; Range fails", zap.Error(err))
		return fmt.Sprintf("RANGE ERROR:%s", rpctypes.ErrorDesc(err))
	}
	return ""
}

func alarmReason(t pb.AlarmType) string {
	switch t {
	case pb.AlarmType_NOSPACE:
		return "ALARM NOSPACE"
	case pb.AlarmType_CORRUPT:
		return "ALARM CORRUPT"
	}
	return "ALARM UNKNOWN"
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// check is one check of a probe.
type check struct {
	name string
	run  func(context.Context) error
}

func readCheck(b Backend, serializable bool) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := b.CheckRead(ctx, serializable); err != nil {
			return errors.New(rpctypes.ErrorDesc(err)) // probes get the text without the code
		}
		return nil
	}
}

func alarmCheck(b Backend, t pb.AlarmType) func(context.Context) error {
	return func(context.Context) error {
		for _, a := range b.Alarms() {
			if a.GetAlarm() == t {
				return fmt.Errorf("alarm activated: %s", t)
			}
		}
		return nil
	}
}

func learnerCheck(b Backend) func(context.Context) error {
	return func(context.Context) error {
		if b.IsLearner() {
			return errors.New("not supported for learner")
		}
		return nil
	}
}

func roomCheck(b Backend) func(context.Context) error {
	return func(context.Context) error {
		if why := b.NoRoom(); why != "" {
			return errors.New(why)
		}
		return nil
	}
}

// probe serves /livez or /readyz: the path itself runs all checks that are not excluded, in
// order; the path with the name of a check appended runs only that one. Checks that etcd
// does not have are quiet: they appear only when they fail.
type probe struct {
	kind   string
	lg     *zap.Logger
	checks []check
	quiet  []check
}

func (p probe) install(mux *http.ServeMux) {
	root := "/" + p.kind
	mux.Handle(root, p.handler(root, func(r *http.Request) []check {
		return p.without(r.URL.Query()["exclude"])
	}))
	for _, c := range append(slices.Clone(p.checks), p.quiet...) {
		path := root + "/" + c.name
		mux.Handle(path, p.handler(path, func(*http.Request) []check { return []check{c} }))
	}
}

// without returns the checks that are not excluded. Excluding an unknown check is not an
// error: probes are written for several versions.
func (p probe) without(exclude []string) []check {
	var left []check
	excluded := map[string]bool{}
	for _, name := range exclude {
		excluded[name] = true
	}
	delete(excluded, "")
	for _, c := range p.checks {
		if !excluded[c.name] {
			left = append(left, c)
		}
		delete(excluded, c.name)
	}
	for _, c := range p.quiet {
		if !excluded[c.name] && c.run(context.Background()) != nil {
			left = append(left, c)
		}
		delete(excluded, c.name)
	}
	if len(excluded) > 0 {
		names := make([]string, 0, len(excluded))
		for _, name := range exclude {
			if excluded[name] {
				names = append(names, fmt.Sprintf("%q", name))
			}
		}
		p.lg.Warn("some health checks cannot be excluded", zap.String("missing-health-checks", strings.Join(names, ",")))
	}
	return left
}

func (p probe) handler(path string, pick func(*http.Request) []check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !allow(w, r, http.MethodGet) {
			p.lg.Warn("Health request error", zap.String("path", path), zap.Int("status-code", http.StatusMethodNotAllowed))
			return
		}
		report, ok := p.run(r.Context(), pick(r))
		if !ok {
			http.Error(w, report, http.StatusServiceUnavailable)
			p.lg.Error("Health check error", zap.String("path", path), zap.String("reason", report), zap.Int("status-code", http.StatusServiceUnavailable))
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.URL.Query().Has("verbose") {
			fmt.Fprint(w, report)
		}
		fmt.Fprint(w, "ok\n")
	}
}

// run runs the checks in order and reports one line for each.
func (p probe) run(ctx context.Context, checks []check) (report string, ok bool) {
	var lines strings.Builder
	ok = true
	for _, c := range checks {
		err := c.run(ctx)
		p.record(c.name, err)
		if err != nil {
			ok = false
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", c.name, err)
			continue
		}
		fmt.Fprintf(&lines, "[+]%s ok\n", c.name)
	}
	return lines.String(), ok
}

func (p probe) record(name string, err error) {
	value, status := 1.0, statusSuccess
	if err != nil {
		value, status = 0, statusError
	}
	metrics.ServerHealthcheck.WithLabelValues(p.kind, name).Set(value)
	metrics.ServerHealthchecksTotal.WithLabelValues(p.kind, name, status).Inc()
}
