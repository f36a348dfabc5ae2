package pebble

import (
	"time"

	"github.com/cockroachdb/pebble/v2"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/engine"
)

// Size implements engine.Engine. It is cheap enough to be called for each write. It includes
// what is in memtables, which will be on disk. On a full disk, where Pebble may not answer, it
// is the size of before.
func (s *store) Size() engine.Size {
	memory := s.mem.inMemory()
	// What measures already may have begun before the last change; the next does not. A flush
	// that ends meanwhile moves what is in memory to the disk.
	for i := 0; i < 2 && s.stale.Load(); i++ {
		memory = s.mem.inMemory()
		s.awaitMeasured()
	}
	s.sizeMu.Lock()
	defer s.sizeMu.Unlock()
	return engine.Size{Total: s.size.Total + memory, InUse: s.size.InUse + memory}
}

// awaitMeasured waits until the size is known again. It does not wait while the disk is full or
// once the engine is closed; the size is then known later, if at all.
func (s *store) awaitMeasured() {
	s.sizeMu.Lock()
	done := s.measuring
	if done == nil && s.use() {
		done = make(chan struct{})
		s.measuring = done
		go crash.Guarded(func() {
			defer s.done()
			s.measure()
			close(done)
		})()
	}
	s.sizeMu.Unlock()
	if done == nil || s.disk.full.Load() {
		return
	}
	poll := clock.NewTicker(clock.System, 20*time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-done:
			return
		case <-s.closing:
			return
		case <-poll.C:
			if s.disk.full.Load() {
				return
			}
		}
	}
}

// measure computes the size. Pebble waits for a change of its manifest that is being written.
func (s *store) measure() {
	s.stale.Store(false)
	m := s.db.Metrics()
	total := int64(m.DiskSpaceUsage() - passing(m))
	live := int64(m.Table.Local.LiveSize)
	garbage := int64(m.Table.Garbage.PointDeletionsBytesEstimate + m.Table.Garbage.RangeDeletionsBytesEstimate)
	s.sizeMu.Lock()
	defer s.sizeMu.Unlock()
	s.size = engine.Size{Total: total, InUse: min(live-min(garbage, live), total)}
	s.measuring = nil
}

// passing returns the part of the disk space in use by files that are being written
// or wait to be deleted.
func passing(m *pebble.Metrics) uint64 {
	tables, blobs := &m.Table.Local, &m.BlobFiles.Local
	return tables.ObsoleteSize + tables.ZombieSize + blobs.ObsoleteSize + blobs.ZombieSize +
		m.WAL.ObsoletePhysicalSize + uint64(m.Compact.InProgressBytes)
}
