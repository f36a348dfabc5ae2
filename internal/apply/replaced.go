package apply

import (
	"sync"

	"quorate/internal/engine"
)

// Snapshot returns the current state of the engine. The machine is in use until it is closed.
func (m *Machine) Snapshot() engine.Snapshot {
	m.snapshots.Add(1)
	return &snapshot{Snapshot: m.eng.NewSnapshot(), done: sync.OnceFunc(func() { m.snapshots.Add(-1) })}
}

type snapshot struct {
	engine.Snapshot
	done func()
}

func (s *snapshot) Close() error {
	defer s.done()
	return s.Snapshot.Close()
}

// Retire ends the use of a machine that next has replaced. Apply must not be called any more.
// Readers that come late find the state of next; those that have come before find this one
// as long as its engine is open, which it must be while InUse.
func (m *Machine) Retire(next *Machine) {
	m.Close()
	m.keys.kv.Retire(next.keys.kv)
}

// InUse reports whether somebody reads from the machine's engine, other than the engine's own
// work.
func (m *Machine) InUse() bool {
	return m.snapshots.Load() > 0 || m.keys.kv.OpenViews() > 0
}
