package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftnode"
	"quorate/internal/transport"
)

// ErrRemoved is returned by a member that the cluster has removed.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster; its --data-dir must be removed before it can join again")

var errInboxFull = errors.New("server: too many raft messages are waiting")

// host is the member as the transport sees it. Its methods are called from the
// transport's goroutines.
type host struct {
	replica   *localReplica
	cluster   *membership.Cluster
	driver    *driver
	installer *installer
}

var _ transport.Host = host{}

func (h host) Process(msg *raftpb.Message) error { return h.driver.receive(msg) }

func (h host) Step(proposals bool) { h.driver.received(proposals) }

func (h host) ReportUnreachable(id ids.Member) {
	h.driver.in.Unreachable(id)
	h.driver.drive()
}

func (h host) Returned(msg *raftpb.Message) {
	h.driver.in.Returned(msg)
	h.driver.drive()
}

func (h host) ReportSnapshot(id ids.Member, ok bool) { h.driver.snapshotSent(id, ok) }

func (h host) IsRemoved(id ids.Member) bool { return h.cluster.IsRemoved(id) }

func (h host) SelfRemoved(error) { h.replica.fail(ErrRemoved) }

func (h host) ReceiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader) error {
	if err := raftnode.Check(msg, h.replica.id); err != nil {
		return fmt.Errorf("%w: %w", transport.ErrSnapshotNotProcessed, err)
	}
	return h.installer.receiveSnapshot(ctx, msg, body)
}
