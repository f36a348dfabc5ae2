package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/membership"
	"quorate/internal/raftnode"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// ErrRemoved ends a member that the cluster has removed.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster; its --data-dir must be removed before it can join again")

var errInboxFull = errors.New("server: too many raft messages are waiting")

// host is what the transport sees of the member. Its methods are called from the
// transport's goroutines.
type host struct{ m *Member }

var _ transport.Host = host{}

// Process looks at a message of a peer and queues it for the core. A message is dropped when the
// queue is full; raft sends again what it still needs.
func (h host) Process(msg *raftpb.Message) error {
	if h.m.cluster.IsRemoved(msg.GetFrom()) {
		return ErrRemoved
	}
	if err := raftnode.Check(msg, h.m.id); err != nil {
		return err
	}
	if !h.m.in.Receive(msg) {
		return errInboxFull
	}
	h.m.drive()
	return nil
}

func (h host) ReportUnreachable(id uint64) {
	h.m.in.Unreachable(id)
	h.m.drive()
}

func (h host) Returned(msg *raftpb.Message) {
	h.m.in.Returned(msg)
	h.m.drive()
}

func (h host) ReportSnapshot(id uint64, ok bool) {
	h.m.event(func(in *replica.Input) { in.Snapshots = append(in.Snapshots, replica.SnapshotReport{To: id, OK: ok}) })
}

func (h host) IsRemoved(id uint64) bool { return h.m.cluster.IsRemoved(id) }

func (h host) SelfRemoved(error) { h.m.fail(ErrRemoved) }

func (h host) ReceiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader) error {
	if err := raftnode.Check(msg, h.m.id); err != nil {
		return fmt.Errorf("%w: %w", transport.ErrSnapshotNotProcessed, err)
	}
	return h.m.receiveSnapshot(ctx, msg, body)
}

// peerChanged follows a membership change on the network.
func (m *Member) peerChanged(e membership.Effect) {
	id := e.Member.ID
	switch {
	case e.Action == membership.Removed && id == m.id:
		m.background(func() {
			// Stay long enough for the leader to learn that the entry is applied here.
			if m.pause(m.rootCtx, removalDelay) == nil {
				m.fail(ErrRemoved)
			}
		})
	case id == m.id:
	case e.Action == membership.Removed:
		m.tr.RemovePeer(id)
	case e.Action == membership.Updated:
		m.tr.UpdatePeer(id, e.Member.PeerURLs)
	case e.Action == membership.Added:
		m.tr.AddPeer(id, e.Member.PeerURLs)
	}
}
