package transport

import (
	"maps"
	"slices"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/ids"
)

// reporter passes failures to the Host from its own goroutine, so that Send
// may be called from the loop that receives the reports. Pending reports of
// the same peer are merged.
type reporter struct {
	lg   *zap.Logger
	host Host
	wake chan struct{}

	mu          sync.Mutex
	unreachable map[ids.Member]int // by peer, the number of messages dropped
	snapshots   []snapshotReport
	proposals   []*raftpb.Message // at most proposalQueue
}

type snapshotReport struct {
	id ids.Member
	ok bool
}

func newReporter(lg *zap.Logger, host Host) *reporter {
	return &reporter{lg: lg, host: host, wake: make(chan struct{}, 1), unreachable: make(map[ids.Member]int)}
}

// drop records that n messages to a peer were lost.
func (r *reporter) drop(id ids.Member, n int) {
	r.mu.Lock()
	r.unreachable[id] += n
	r.mu.Unlock()
	r.signal()
}

func (r *reporter) snapshot(id ids.Member, ok bool) {
	r.mu.Lock()
	r.snapshots = append(r.snapshots, snapshotReport{id, ok})
	r.mu.Unlock()
	r.signal()
}

// proposal returns a proposal to the Host.
func (r *reporter) proposal(m *raftpb.Message) {
	r.mu.Lock()
	if len(r.proposals) < proposalQueue {
		r.proposals = append(r.proposals, m)
	}
	r.mu.Unlock()
	r.signal()
}

func (r *reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run(stop <-chan struct{}) {
	for {
		select {
		case <-r.wake:
			r.flush()
		case <-stop:
			return
		}
	}
}

func (r *reporter) flush() {
	r.mu.Lock()
	unreachable, snapshots, proposals := r.unreachable, r.snapshots, r.proposals
	r.unreachable, r.snapshots, r.proposals = make(map[ids.Member]int), nil, nil
	r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(unreachable)) {
		r.lg.Debug("dropped raft messages", zap.Stringer("peer-id", id), zap.Int("messages", unreachable[id]))
		r.host.ReportUnreachable(id)
	}
	for _, m := range proposals {
		r.host.Returned(m)
	}
	for _, s := range snapshots {
		r.host.ReportSnapshot(s.id, s.ok)
	}
}
