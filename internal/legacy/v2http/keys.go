package v2http

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/legacy/v2store"
	"quorate/internal/metrics"
)

var keyMethods = []string{"HEAD", "GET", "PUT", "POST", "DELETE"}

var errTooManyRequests = errors.New("etcdserver: too many requests")

func (h *handler) keys(w http.ResponseWriter, r *http.Request) {
	h.setCluster(w)
	began := clock.Now()
	op, refused := parseKeys(r, h.o.Now)
	if refused != nil {
		h.writeKeyError(w, refused)
		return
	}
	ctx, cancel := h.timeout(r)
	allowed, err := h.mayUseKeys(ctx, r, op.checked, op.req.Recursive)
	cancel()
	if err != nil {
		h.writeKeyError(w, h.storeError(r, err))
		return
	}
	if !allowed {
		h.writeKeyError(w, v2store.NewError(v2store.CodeUnauthorized, noCredentials, 0))
		return
	}
	if !op.req.Wait {
		metrics.HTTPReceivedTotal.WithLabelValues(op.label()).Inc()
	}
	if op.wait {
		h.watch(w, r, op)
		return
	}
	ev, err := h.b.V2Do(r.Context(), &op.req) // it ends by itself, and has the better reason
	if err != nil {
		h.failKeys(w, r, op, err)
		return
	}
	h.setIndexes(w, ev.EtcdIndex)
	status := http.StatusOK
	if ev.IsCreated() {
		status = http.StatusCreated
	}
	h.writeJSON(w, status, shown(ev, op.noValue))
	metrics.HTTPSuccessfulDurationSeconds.WithLabelValues(op.label()).Observe(clock.Since(began).Seconds())
}

// watch sends the events that a client waits for: one or, with stream, all until the client
// goes away. A client that does not keep up loses the watch; its answer ends.
func (h *handler) watch(w http.ResponseWriter, r *http.Request, op *operation) {
	defer h.watching.Add(-1)
	if h.watching.Add(1) > maxWatches {
		h.failKeys(w, r, op, errTooManyRequests)
		return
	}
	watcher, err := h.b.V2Watch(op.req.Path, op.req.Recursive, op.req.Stream, op.req.Since)
	if err != nil {
		h.failKeys(w, r, op, err)
		return
	}
	defer watcher.Close()
	w.Header().Set("Content-Type", "application/json")
	h.setIndexes(w, watcher.StartIndex())
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if rc.Flush() != nil { // send the headers before there is an event
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case ev, ok := <-watcher.Events():
			if !ok {
				return
			}
			if err := rc.SetWriteDeadline(clock.Now().Add(patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return
			}
			if err := json.NewEncoder(w).Encode(shown(ev, false)); err != nil || !op.req.Stream || rc.Flush() != nil {
				return
			}
		}
	}
}

func (h *handler) setIndexes(w http.ResponseWriter, index uint64) {
	w.Header().Set("X-Etcd-Index", strconv.FormatUint(index, 10))
	w.Header().Set("X-Raft-Index", strconv.FormatUint(uint64(h.b.CommittedIndex()), 10))
	w.Header().Set("X-Raft-Term", strconv.FormatUint(uint64(h.b.Term()), 10))
}

func (h *handler) failKeys(w http.ResponseWriter, r *http.Request, op *operation, err error) {
	e := h.storeError(r, err)
	h.writeKeyError(w, e)
	metrics.HTTPFailedTotal.WithLabelValues(op.label(), strconv.Itoa(e.Status())).Inc()
}

// storeError returns err as clients of keys get it.
func (h *handler) storeError(r *http.Request, err error) *v2store.Error {
	var e *v2store.Error
	if !errors.As(err, &e) {
		h.lg.Warn("v2 response error", zap.String("remote-addr", r.RemoteAddr), zap.String("path", r.URL.Path), zap.Error(err))
		return v2store.NewError(v2store.CodeRaftInternal, causeOf(err), 0)
	}
	out := *e
	out.Cause = strings.TrimPrefix(out.Cause, keysRoot)
	return &out
}

// shown returns an event as clients see it: their keys begin at the root. The event itself
// is part of the history and is not changed.
func shown(ev *v2store.Event, noValue bool) *v2store.Event {
	out := *ev
	if noValue {
		switch ev.Action {
		case v2store.Set, v2store.Update, v2store.Create, v2store.CompareAndSwap:
			out.Node, out.PrevNode = nil, nil
		}
	}
	out.Node, out.PrevNode = shownNode(out.Node), shownNode(out.PrevNode)
	return &out
}

func shownNode(n *v2store.Node) *v2store.Node {
	if n == nil {
		return nil
	}
	out := *n
	out.Key = strings.TrimPrefix(n.Key, keysRoot)
	if n.Nodes != nil {
		out.Nodes = make([]*v2store.Node, len(n.Nodes))
		for i, child := range n.Nodes {
			out.Nodes[i] = shownNode(child)
		}
	}
	return &out
}
