package replica

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// maxInboxMessages bounds the messages of peers that wait for the core. Further ones are
// dropped: raft retransmits what matters.
const maxInboxMessages = 8192

// Inbox collects the inputs of the next step. It is safe for concurrent use. Proposals are
// bounded by the proposal table, acknowledgements by the work that was handed out.
type Inbox struct {
	mu   sync.Mutex
	in   Input       // guarded by mu
	some atomic.Bool // in is not empty
}

// Add calls f to add to the pending input; f must not block.
func (b *Inbox) Add(f func(*Input)) {
	b.mu.Lock()
	f(&b.in)
	b.some.Store(true)
	b.mu.Unlock()
}

// Pending reports whether there is input.
func (b *Inbox) Pending() bool { return b.some.Load() }

// Take returns the pending input and leaves the inbox empty.
func (b *Inbox) Take() Input {
	b.mu.Lock()
	in := b.in
	b.in = Input{}
	b.some.Store(false)
	b.mu.Unlock()
	return in
}

// Receive queues a message of a peer. It reports false if the inbox is full and the message
// was dropped.
func (b *Inbox) Receive(m *raftpb.Message) (ok bool) {
	b.Add(func(in *Input) {
		if ok = len(in.Recv) < maxInboxMessages; ok {
			in.Recv = append(in.Recv, m)
		}
	})
	return ok
}

// Unreachable records that a message to a peer could not be sent.
func (b *Inbox) Unreachable(id ids.Member) {
	b.Add(func(in *Input) {
		if len(in.Unreachable) < maxInboxMessages {
			in.Unreachable = append(in.Unreachable, id)
		}
	})
}

// Returned queues a proposal that was certainly not sent.
func (b *Inbox) Returned(m *raftpb.Message) {
	b.Add(func(in *Input) {
		if len(in.Returned) < maxForwarded {
			in.Returned = append(in.Returned, m)
		}
	})
}
