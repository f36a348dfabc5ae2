package replica

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
)

// maxInboxMessages bounds the messages of peers that wait for the core. More are
// dropped: raft sends again what matters.
const maxInboxMessages = 8192

// Inbox collects what happens to the member until somebody drives the core.
// Proposals are bounded by the proposal table, acknowledgements by the work that
// was handed out.
type Inbox struct {
	mu   sync.Mutex
	in   Input
	some atomic.Bool // in holds something
}

// Add lets f note what has happened; f must not wait.
func (b *Inbox) Add(f func(*Input)) {
	b.mu.Lock()
	f(&b.in)
	b.some.Store(true)
	b.mu.Unlock()
}

// Pending reports whether something waits.
func (b *Inbox) Pending() bool { return b.some.Load() }

// Take returns all that waits.
func (b *Inbox) Take() Input {
	b.mu.Lock()
	in := b.in
	b.in = Input{}
	b.some.Store(false)
	b.mu.Unlock()
	return in
}

// Receive queues a message of a peer and reports whether there was room.
func (b *Inbox) Receive(m *raftpb.Message) (ok bool) {
	b.Add(func(in *Input) {
		if ok = len(in.Recv) < maxInboxMessages; ok {
			in.Recv = append(in.Recv, m)
		}
	})
	return ok
}

// Unreachable notes that a peer could not be sent something.
func (b *Inbox) Unreachable(id uint64) {
	b.Add(func(in *Input) {
		if len(in.Unreachable) < maxInboxMessages {
			in.Unreachable = append(in.Unreachable, id)
		}
	})
}

// Returned notes a proposal that the network has surely not sent.
func (b *Inbox) Returned(m *raftpb.Message) {
	b.Add(func(in *Input) {
		if len(in.Returned) < maxForwarded {
			in.Returned = append(in.Returned, m)
		}
	})
}
