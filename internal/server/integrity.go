package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/transport/peerapi"
)

// IntegrityOptions says how often the leader compares.
type IntegrityOptions struct {
	Interval            time.Duration // between comparisons of the members' data; 0 means never
	Compactions         bool          // also compare the hashes taken at compactions
	CompactionsInterval time.Duration
	Scrub               time.Duration // interval at which each member reads all its files; 0 is never
	Digests             time.Duration // between comparisons of what the members wrote for the same entries; 0 means never
}

// Integrity compares this member's keys with those of the other members.
type Integrity struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	peers   *peerapi.Client

	// compactionChecked is the newest compaction with the same hash on all members;
	// used by watchCompactHashes alone.
	compactionChecked ids.Revision
}

// Members that applied the same entries hold the same records. These checks compare hashes
// of them: at start, before anything is served; periodically on the leader; and, also on
// the leader, the hashes that each member took at the same compaction. The latter two
// raise the CORRUPT alarm, and from then on apply rejects all changes until the alarm is
// disarmed.

// peerHash is another member's answer to a request for its hash.
type peerHash struct {
	member membership.Member
	hash   mvcc.HashResult
	err    error // no answer
}

func (p *peerHash) id() zap.Field {
	return zap.Stringer("remote-peer-id", p.member.ID)
}

// peerHashes asks all other members for their hash at a revision.
func (i *Integrity) peerHashes(ctx context.Context, rev ids.Revision) []peerHash {
	var all []peerHash
	for _, x := range i.cluster.Members() {
		if x.ID == i.replica.id || len(x.PeerURLs) == 0 {
			continue
		}
		p := peerHash{member: x}
		for _, u := range x.PeerURLs {
			p.hash, p.err = i.peerHash(ctx, u, rev)
			if p.err == nil {
				break
			}
			i.lg.Warn("failed hash kv request", i.replica.localID(), zap.Int64("requested-revision", int64(rev)),
				zap.String("remote-peer-endpoint", u), zap.Error(p.err))
		}
		all = append(all, p)
	}
	return all
}

// peerHash asks one URL. The errors that carry information are those of rpctypes for a
// compacted revision, a future revision, and another cluster.
func (i *Integrity) peerHash(ctx context.Context, url string, rev ids.Revision) (mvcc.HashResult, error) {
	ctx, cancel := context.WithTimeout(ctx, i.cfg.requestTimeout())
	defer cancel()
	h, err := i.peers.HashKV(ctx, url, i.cluster.ID(), rev)
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return h, rpctypes.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return h, rpctypes.ErrFutureRev
	case errors.Is(err, peerapi.ErrOtherCluster):
		return h, rpctypes.ErrClusterIDMismatch
	}
	return h, err
}

// CheckInitial compares the local store with the members that answer. It is for a member
// that has data and has not started. Only a different hash of the same records is an
// error; a member that is behind or unreachable proves nothing.
func (i *Integrity) CheckInitial(ctx context.Context) error {
	i.lg.Info("starting initial corruption check", i.replica.localID(), zap.Duration("timeout", i.cfg.requestTimeout()))
	own, err := i.replica.kv().HashKV(ctx, 0)
	if err != nil {
		return fmt.Errorf("%s failed to fetch hash (%w)", i.replica.id, err)
	}
	fields := []zap.Field{i.replica.localID(), zap.Int64("local-member-revision", int64(own.HashRev)),
		zap.Int64("local-member-compact-revision", int64(own.CompactRev)), zap.Uint32("local-member-hash", own.Hash)}
	mismatch := false
	for _, p := range i.peerHashes(ctx, own.HashRev) {
		about := append(slices.Clone(fields), p.id(), zap.Strings("remote-peer-endpoints", p.member.PeerURLs))
		switch {
		case errors.Is(p.err, rpctypes.ErrFutureRev):
			i.lg.Warn("cannot fetch hash from slow remote peer", append(about, zap.Error(p.err))...)
		case errors.Is(p.err, rpctypes.ErrCompacted):
			i.lg.Warn("cannot fetch hash from remote peer; local member is behind", append(about, zap.Error(p.err))...)
		case errors.Is(p.err, rpctypes.ErrClusterIDMismatch):
			i.lg.Warn("cluster ID mismatch", append(about, zap.Error(p.err))...)
		case p.err != nil || p.hash.Hash == own.Hash:
		default:
			about = append(about, zap.Int64("remote-peer-revision", int64(p.hash.CurrentRev)),
				zap.Int64("remote-peer-compact-revision", int64(p.hash.CompactRev)), zap.Uint32("remote-peer-hash", p.hash.Hash))
			if p.hash.CompactRev != own.CompactRev {
				i.lg.Warn("found different compact revision values from remote peer", about...)
				continue
			}
			i.lg.Warn("found different hash values from remote peer", about...)
			mismatch = true
		}
	}
	if mismatch {
		return fmt.Errorf("%s found data inconsistency with peers", i.replica.id)
	}
	i.lg.Info("initial corruption checking passed; no corruption", i.replica.localID())
	return nil
}

// watchHashes runs the periodic check of the leader.
func (i *Integrity) watchHashes(ctx context.Context) {
	if err := i.checkHashes(ctx); err != nil && !ended(err) {
		i.lg.Warn("failed to check hash KV", zap.Error(err))
	}
}

// checkHashes compares the members' current state with the leader's. The leader hashes
// before it asks and, after a barrier, again: in between, others may have applied or
// compacted more than it had, but not more than it has afterwards.
func (i *Integrity) checkHashes(ctx context.Context) error {
	own, err := i.replica.kv().HashKV(ctx, 0)
	if err != nil {
		return err
	}
	peers := i.peerHashes(ctx, own.HashRev)
	limited, cancel := context.WithTimeout(ctx, i.cfg.requestTimeout())
	err = i.replica.barrier(limited)
	cancel()
	if err != nil {
		return err
	}
	again, err := i.replica.kv().HashKV(ctx, 0)
	if err != nil {
		return err
	}
	var corrupt []ids.Member
	if again.Hash != own.Hash && again.HashRev == own.HashRev && again.CompactRev == own.CompactRev {
		i.lg.Warn("found hash mismatch",
			zap.Int64("revision-1", int64(own.HashRev)), zap.Int64("compact-revision-1", int64(own.CompactRev)), zap.Uint32("hash-1", own.Hash),
			zap.Int64("revision-2", int64(again.HashRev)), zap.Int64("compact-revision-2", int64(again.CompactRev)), zap.Uint32("hash-2", again.Hash))
		corrupt = append(corrupt, i.replica.id)
	}
	checked := 0
	for _, p := range peers {
		if p.err != nil {
			continue
		}
		checked++
		follower := zap.Stringer("follower-peer-id", p.member.ID)
		bad := false
		if p.hash.CurrentRev > again.CurrentRev {
			i.lg.Warn("revision from follower must be less than or equal to leader's",
				zap.Int64("leader-revision", int64(again.CurrentRev)), zap.Int64("follower-revision", int64(p.hash.CurrentRev)), follower)
			bad = true
		}
		if p.hash.CompactRev > again.CompactRev {
			i.lg.Warn("compact revision from follower must be less than or equal to leader's",
				zap.Int64("leader-compact-revision", int64(again.CompactRev)), zap.Int64("follower-compact-revision", int64(p.hash.CompactRev)), follower)
			bad = true
		}
		if p.hash.CompactRev == own.CompactRev && p.hash.Hash != own.Hash {
			i.lg.Warn("same compact revision then hashes must match",
				zap.Int64("leader-compact-revision", int64(again.CompactRev)), zap.Uint32("leader-hash", own.Hash),
				zap.Int64("follower-compact-revision", int64(p.hash.CompactRev)), zap.Uint32("follower-hash", p.hash.Hash), follower)
			bad = true
		}
		if bad {
			corrupt = append(corrupt, p.member.ID)
		}
	}
	if len(corrupt) > 0 {
		i.raiseCorrupt(corrupt[0]) // one at a time, as in etcd: it is unknown which member is right
	}
	i.lg.Info("finished peer corruption check", zap.Int("number-of-peers-checked", checked))
	return nil
}

// checkCompactHashes compares the hashes that members took at compactions, newest first,
// until one was compared with all members or the members disagree.
func (i *Integrity) checkCompactHashes(ctx context.Context) {
	i.lg.Info("starting compact hash check", i.replica.localID(), zap.Duration("timeout", i.cfg.requestTimeout()))
	checked := 0
	for _, c := range i.replica.kv().CompactionHashes() {
		if c.Rev <= i.compactionChecked {
			break
		}
		own, err := i.replica.kv().HashKV(ctx, c.Rev)
		if err != nil || own.CompactRev != c.Prev {
			continue // a later compaction came before the hash was complete
		}
		checked++
		peers := i.peerHashes(ctx, c.Rev)
		if len(peers) > 0 && i.compareCompaction(own, peers) {
			break
		}
	}
	i.lg.Info("finished compaction hash check", zap.Int("number-of-hashes-checked", checked))
}

// compareCompaction compares the hashes of one compaction. It returns false if some
// members could not be asked and the others agree, so that an older compaction should be
// compared.
func (i *Integrity) compareCompaction(own mvcc.HashResult, peers []peerHash) bool {
	groups := groupByHash(own, i.replica.id, peers)
	checked := 0
	for _, p := range peers {
		reason := ""
		switch {
		case p.err != nil:
			reason = "no response"
		case p.hash.CompactRev != own.CompactRev:
			reason = fmt.Sprintf("the peer's CompactRevision %d doesn't match leader's CompactRevision %d", p.hash.CompactRev, own.CompactRev)
		default:
			checked++
			continue
		}
		i.lg.Warn("Skipped peer's hash", zap.Int("number-of-peers", len(peers)), zap.Stringer("leader-id", i.replica.id),
			zap.Stringer("peer-id", p.member.ID), zap.String("reason", reason))
	}
	if len(groups) == 1 {
		fields := []zap.Field{zap.Int("number-of-peers-checked", checked), zap.Int64("revision", int64(own.HashRev)), zap.Int64("compactRevision", int64(own.CompactRev))}
		if checked < len(peers) {
			i.lg.Warn("skipped revision in compaction hash check; was not able to check all peers",
				append(fields, zap.Int("number-of-peers", len(peers)))...)
			return false
		}
		i.lg.Info("successfully checked hash on whole cluster", fields...)
		i.compactionChecked = max(i.compactionChecked, own.HashRev)
		return true
	}
	leader := []zap.Field{zap.Stringer("leader-id", i.replica.id), zap.Int64("leader-revision", int64(own.HashRev)),
		zap.Int64("leader-compact-revision", int64(own.CompactRev)), zap.Uint32("leader-hash", own.Hash)}
	majority := slices.IndexFunc(groups, func(g hashGroup) bool { return len(g.members) >= (len(peers)+1)/2+1 })
	if majority < 0 {
		i.lg.Error("Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0", leader...)
		i.raiseCorrupt(0)
	} else {
		groups = slices.Delete(groups, majority, majority+1)
	}
	for _, g := range groups {
		if majority >= 0 {
			for _, id := range g.members {
				i.raiseCorrupt(id)
			}
		}
		i.lg.Error("Detected compaction hash mismatch", append(slices.Clone(leader), zap.Uint32("peer-hash", g.hash),
			zap.String("peer-ids", joinIDs(g.members)), zap.Bool("quorum-exist", majority >= 0))...)
	}
	return true
}

// hashGroup is the members that have the same hash.
type hashGroup struct {
	hash    uint32
	members []ids.Member
}

// groupByHash groups the members whose hash covers the same compaction as own, this
// member's group first.
func groupByHash(own mvcc.HashResult, id ids.Member, peers []peerHash) []hashGroup {
	groups := []hashGroup{{own.Hash, []ids.Member{id}}}
	for _, p := range peers {
		if p.err != nil || p.hash.CompactRev != own.CompactRev {
			continue
		}
		i := slices.IndexFunc(groups, func(g hashGroup) bool { return g.hash == p.hash.Hash })
		if i < 0 {
			groups = append(groups, hashGroup{hash: p.hash.Hash})
			i = len(groups) - 1
		}
		groups[i].members = append(groups[i].members, p.member.ID)
	}
	return groups
}

func joinIDs(members []ids.Member) string {
	text := make([]string, len(members))
	for i, id := range members {
		text[i] = id.String()
	}
	return strings.Join(text, ",")
}

// raiseCorrupt proposes the alarm that a member's data is corrupt; id 0 means that it is
// unknown which member's.
func (i *Integrity) raiseCorrupt(id ids.Member) {
	i.replica.background(func() {
		_, err := i.replica.propose(i.replica.rootCtx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			MemberID: uint64(id), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT}})
		if err != nil && !ended(err) {
			i.lg.Warn("failed to raise the CORRUPT alarm; the next check tries again",
				zap.Stringer("corrupt-member-id", id), zap.Error(err))
		}
	})
}
