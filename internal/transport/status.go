package transport

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// status tracks since when a peer has been reachable without interruption.
// Streams in both directions and requests report to it.
type status struct {
	lg            *zap.Logger
	local, remote string
	id            ids.Member
	name          func(id ids.Member) string // see Config

	mu    sync.Mutex
	since time.Time // zero while unreachable
}

func newStatus(lg *zap.Logger, local, remote ids.Member, name func(id ids.Member) string) *status {
	return &status{lg: lg, local: local.String(), remote: remote.String(), id: remote, name: name}
}

func (s *status) activate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = clock.Now()
		s.lg.Info("peer became active", zap.String("peer-id", s.remote), nameField(s.name, s.id))
		metrics.NetworkActivePeers.WithLabelValues(s.local, s.remote).Inc()
	}
}

// deactivate records a failure; action says what failed, as in "dial
// stream".
func (s *status) deactivate(action string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.lg.Debug("peer is still inactive", zap.String("peer-id", s.remote), zap.String("failed", action), zap.Error(err))
		return
	}
	s.since = time.Time{}
	s.lg.Warn("peer became inactive (message send to peer failed)", zap.String("peer-id", s.remote), nameField(s.name, s.id),
		zap.Error(fmt.Errorf("failed to %s with %s: %w", action, s.remote, err)))
	metrics.NetworkActivePeers.WithLabelValues(s.local, s.remote).Dec()
	metrics.NetworkDisconnectedPeersTotal.WithLabelValues(s.local, s.remote).Inc()
}

// forget removes a stopped peer from the gauge.
func (s *status) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.since.IsZero() {
		s.since = time.Time{}
		metrics.NetworkActivePeers.WithLabelValues(s.local, s.remote).Dec()
	}
}

func (s *status) activeSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}
