package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/metrics"
	"quorate/internal/scrub"
)

// Damage at rest is found when a block is read: its checksum is wrong, the read fails with
// the name of the file, and no byte of it is returned. Blocks that no client reads are found
// by the scrub, which reads everything once per interval. It raises no alarm: an alarm stops
// the writes of the whole cluster, which has the data, while the damaged blocks of one member
// are never served. It is shown in the log, in metrics and in the status of the member.

const (
	// scrubRate bounds how many bytes per second a scrub reads.
	scrubRate = 8 << 20
	// scrubLook is the greatest interval at which the member checks whether a scrub is due.
	scrubLook = time.Hour
	// scrubProgress is the interval of log lines about a scrub.
	scrubProgress = time.Minute
	// scrubShown bounds the damaged parts that the status lists.
	scrubShown = 4
)

// scrubKey is when the files were last scrubbed, so that restarts do not postpone the next.
var scrubKey = engine.Local.K([]byte("scrubbed"))

// scrubber reads all files of the member from time to time.
type scrubber struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica

	last time.Time // of run alone: when a scrub was last finished, or when it was first due from

	mu    sync.Mutex
	found []scrub.Damage // by the newest scrub; guarded by mu
	count int            // guarded by mu
}

// look is how often run is called.
func (s *scrubber) look() time.Duration { return min(s.cfg.Checks.Scrub, scrubLook) }

// errors returns the lines about damage for the status.
func (s *scrubber) errors() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range s.found {
		if i == scrubShown {
			return append(lines, fmt.Sprintf("%d damaged parts of files in all", s.count))
		}
		lines = append(lines, "damaged file: "+d.String())
	}
	return lines
}

// run scrubs if it is time to.
func (s *scrubber) run(ctx context.Context) {
	now := s.cfg.Clock.Now()
	if s.last.IsZero() {
		s.last = s.remembered(now)
	}
	if now.Sub(s.last) < s.cfg.Checks.Scrub {
		return
	}
	if err := s.scrub(ctx); err != nil {
		if ctx.Err() == nil {
			s.lg.Warn("scrub aborted; it starts again at the next check", zap.Error(err))
		}
		return
	}
	s.last = s.cfg.Clock.Now()
	s.remember(s.last)
}

// remembered returns when an earlier process has finished a scrub; now if none has.
func (s *scrubber) remembered(now time.Time) time.Time {
	v, err := s.replica.mach().Engine().Get(nil, scrubKey)
	if err != nil || len(v) != 8 {
		s.remember(now)
		return now
	}
	at := time.Unix(int64(binary.BigEndian.Uint64(v)), 0)
	if at.After(now) { // the clock was set back
		return now
	}
	return at
}

func (s *scrubber) remember(at time.Time) {
	b := s.replica.mach().Engine().NewBatch()
	b.Set(scrubKey, binary.BigEndian.AppendUint64(nil, uint64(at.Unix())))
	if err := b.Commit(); err != nil && !errors.Is(err, engine.ErrClosed) {
		s.lg.Warn("cannot record that the files were scrubbed", zap.Error(err))
	}
}

// scrub reads everything once. An error means that it did not get to the end.
func (s *scrubber) scrub(ctx context.Context) error {
	eng := s.replica.mach().Engine()
	start := s.cfg.Clock.Now()
	s.lg.Info("scrub begun: reading all files of the member", zap.String("store", s.replica.storeDir()),
		zap.String("store-size", humanize.Bytes(uint64(eng.Size().Total))), zap.String("bytes-per-second", humanize.Bytes(scrubRate)))
	r := &scrub.Reader{FS: s.cfg.FS, Clock: s.cfg.Clock, BytesPerSecond: scrubRate}
	told, counted := start, int64(0)
	r.Progress = func() {
		metrics.ScrubBytes.Add(float64(r.Bytes - counted))
		counted = r.Bytes
		if now := s.cfg.Clock.Now(); now.Sub(told) >= scrubProgress {
			told = now
			s.lg.Info("scrub in progress", zap.Int64("bytes", r.Bytes), zap.Int("files", r.Files), zap.Int("damaged", r.Damage))
		}
	}
	r.Begin(ctx)
	steps := []func(*scrub.Reader) error{s.replica.layout().Scrub, s.replica.log.Scrub}
	if e, ok := eng.(engine.Scrubber); ok {
		steps = append(steps, e.Scrub)
	}
	for _, step := range steps {
		if err := step(r); err != nil {
			return err
		}
	}
	s.show(r)
	s.lg.Info("scrub finished", zap.Int64("bytes", r.Bytes), zap.Int("files", r.Files), zap.Int("damaged", r.Damage),
		zap.Duration("took", s.cfg.Clock.Now().Sub(start)))
	return nil
}

// within reports whether a file is below a directory.
func within(dir, file string) bool {
	rel, err := filepath.Rel(dir, file)
	return err == nil && filepath.IsLocal(rel)
}

// show makes the outcome of a scrub known.
func (s *scrubber) show(r *scrub.Reader) {
	for _, d := range r.Found {
		s.lg.Error("a file of this member is damaged; the damaged part is not served",
			zap.String("file", d.File), zap.Int64("offset", d.Offset), zap.Error(d.Err),
			zap.String("what-to-do", remedy(within(s.replica.storeDir(), d.File))))
	}
	s.mu.Lock()
	s.found, s.count = r.Found, r.Damage
	s.mu.Unlock()
	metrics.ScrubDamaged.Set(float64(r.Damage))
	metrics.ScrubFinished.Set(float64(s.cfg.Clock.Now().Unix()))
}
