// Package server is one member: it connects consensus, log, state machine, watch and
// transport, and provides the services that the gRPC and HTTP servers call.
//
// In: requests from rpc, messages from peers, time. Out: responses, messages,
// watch events. Always true: an acknowledged write is durable on a quorum and
// applied here; a linearizable read sees every write acknowledged before it; a
// stage waits for another only through a bounded queue, and each takes all pending
// work at once.
//
// Each service is a type in its own file (kv.go, leases.go and so on); all of them build on
// localReplica (replica.go). driver.go, logwriter.go and apply.go carry out the work of the
// pipeline in package replica; open.go and build.go create a member.
package server

import (
	"errors"
	"sync"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2member"
	"quorate/internal/membership"
	"quorate/internal/password"
	"quorate/internal/raftlog"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
	"quorate/internal/watch"
)

// Limits on requests in flight. At the limit a request is rejected with
// ErrTooManyRequests before it consumes anything.
const (
	maxPending      = 20000
	maxPendingBytes = 128 << 20
	// maxApplyGap is how far apply may lag behind the commit index before new
	// proposals are rejected, as in etcd.
	maxApplyGap = 5000
)

// ErrTooManyRequests reaches the client as code Unknown, as etcd sends it.
var ErrTooManyRequests = errors.New("etcdserver: too many requests")

// Member is one running member: its services, and the parts that they share.
type Member struct {
	KV          *KV
	Watches     *Watches
	Leases      *Leases
	Accounts    *Accounts
	Access      *Access
	Members     *Members
	Versions    *Versions
	Maintenance *Maintenance
	Integrity   *Integrity
	Digests     *Digests
	V2          *v2member.Service
	V2Passwords *V2Passwords
	Stats       *Stats

	cfg     *Config
	lg      *zap.Logger
	cluster *membership.Cluster
	lessor  *lease.Lessor
	auth    *auth.Store
	hub     *watch.Hub
	log     *raftlog.Log
	tr      *transport.Transport
	peers   *peerapi.Client // requests to peers outside the streams

	replica   *localReplica
	disks     *disks
	driver    *driver
	logw      *logWriter
	applier   *applier
	installer *installer
	sender    *sender
	leaving   *leaving
	election  *election
	upkeep    *upkeep
	scrubber  *scrubber
	slow      *slowLog
	passwords *password.Hasher

	stopOnce sync.Once
}

// Ready is closed when the member has a leader and has published its name to the cluster:
// from then on it serves clients.
func (m *Member) Ready() <-chan struct{} { return m.Members.readyc }

// Failed is closed when the member cannot continue; Err returns the reason.
func (m *Member) Failed() <-chan struct{} { return m.replica.Failed() }

// Err returns the reason after Failed was closed.
func (m *Member) Err() error { return m.replica.Err() }

// GiveUp ends all waits for the log or for a quorum, now and in future: neither will reach
// this member again, and its clients should turn to another one.
func (m *Member) GiveUp() { m.replica.giveUp() }

// HandOver transfers leadership to another voter, if this member has it and one accepts.
func (m *Member) HandOver() { m.leaving.HandOver() }

// ClusterID returns the cluster's id.
func (m *Member) ClusterID() ids.Cluster { return m.cluster.ID() }

// IsLearner reports whether this member does not vote.
func (m *Member) IsLearner() bool { return m.cluster.IsLocalLearner() }

// Cluster returns the membership.
func (m *Member) Cluster() *membership.Cluster { return m.cluster }

// Hub returns the watch hub.
func (m *Member) Hub() *watch.Hub { return m.hub }

// MemberID returns the member's id.
func (m *Member) MemberID() ids.Member { return m.replica.id }

// Term returns the current raft term.
func (m *Member) Term() ids.Term { return m.replica.Term() }

// Rev returns the published revision.
func (m *Member) Rev() ids.Revision { return m.replica.Rev() }

// Leader returns the id of the leader, 0 if none is known.
func (m *Member) Leader() ids.Member { return m.replica.Leader() }

// CommittedIndex returns the highest index that is known to be committed.
func (m *Member) CommittedIndex() ids.Index { return m.replica.CommittedIndex() }

// Capable reports whether the cluster has decided its version.
func (m *Member) Capable() bool { return m.Versions.Capable() }

// NoRoom says why all writes are rejected: a disk is full, or no file descriptor is left. It
// returns "" if they are not.
func (m *Member) NoRoom() string { return m.disks.NoRoom() }

// RaftStatus returns the state of consensus on this member, with raft's JSON names. It may
// be empty while the member shuts down.
func (m *Member) RaftStatus() raft.Status { return m.driver.RaftStatus() }
