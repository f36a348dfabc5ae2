// Package apply is the replicated state machine: committed entries become
// revisions, leases, alarms and membership.
//
// In: committed entries in log order, from one goroutine. Out: for each
// run of entries one engine batch, one new set of read views, and, as values,
// the results for waiting callers, the changes for watchers and what the server
// must report to raft and the transport. Always true: the applied index is in the
// same batch as the entry's effect, so the two cannot disagree after a crash; an
// entry that was already applied is skipped; every decision depends on the log
// alone, so it is the same on all members; no entry can stop a member: an entry
// that cannot be applied returns an error and changes nothing.
//
// The steps of one entry: decode, alarms, permissions, quota, mvcc, lease,
// applied index, commit.
package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/build"
	"quorate/internal/command"
	"quorate/internal/digest"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
)

// ErrConfChangeV2 is the result of a joint configuration change. etcd never
// writes one, as it does not use joint consensus.
var ErrConfChangeV2 = errors.New("apply: the log holds a joint configuration change, which etcd never writes")

// errEntryType is the result of an entry type that raft does not know.
var errEntryType = errors.New("apply: the log holds an entry of an unknown type")

// Entry is one committed entry.
type Entry struct {
	*raftpb.Entry
	// Req is the decoded request if the caller has it, otherwise nil.
	Req *pb.InternalRaftRequest
	// Foreign is the same for a request with an encoding of its own.
	Foreign command.Foreign
	// Local says that a caller on this member waits for the result; reads in the
	// request are executed only then.
	Local bool
}

// Result is the outcome of one request.
type Result struct {
	ID   uint64
	Resp any // response message of the request's kind, nil on error
	Err  error
	Done <-chan error // signals the physical end of a compaction, see mvcc.Store.Compact; otherwise nil
	// Reconfigured marks a membership change: raft must know that it is applied
	// before the caller is notified, or it would reject the caller's next one.
	Reconfigured bool
	refused      bool // rejected before it counted as applied
}

// Reported is a request that the operator is told of.
type Reported struct {
	Req  *pb.InternalRaftRequest
	Resp any
	Err  error
	Took time.Duration
}

// maxNoted bounds the slow and the failed requests that one run reports.
const maxNoted = 100

// Outcome is the result of a run of entries.
type Outcome struct {
	Results []Result
	// Changes are the writes in revision order, for watchers; Rev is the revision
	// after them.
	Changes []mvcc.Change
	Rev     ids.Revision
	// ConfChanges go to raft in order.
	ConfChanges []ConfChange
	// Members are the membership changes that took effect.
	Members []membership.Effect
	// NewTerm is the term of the newest entry without content, 0 if there was none. A leader
	// begins its term with one; raft also makes one of a membership change that it rejects.
	NewTerm ids.Term
	// QuotaExceeded requests a NOSPACE alarm of this member.
	QuotaExceeded bool
	VersionSet    bool
	// Slow are the requests that took longer than Options.WarnApply each;
	// Failed are those that were rejected during apply.
	Slow, Failed []Reported
	// AuthChanged is set when users, roles or whether auth is enabled have
	// changed.
	AuthChanged bool
	Applied     ids.Index
}

// Options are the parts and parameters of the machine.
type Options struct {
	Cluster *membership.Cluster
	Lessor  *lease.Lessor
	// Auth is loaded from the engine like the two above; nil: one with simple tokens.
	Auth *auth.Store
	MVCC mvcc.Options
	// Quota is the size in bytes at which writes raise NOSPACE; 0 or less: none.
	Quota int64
	// PersistCheckpoints stores the remaining TTL with the lease record even in
	// clusters below version 3.6.
	PersistCheckpoints bool
	Now                func() time.Time // for metrics only
	// Release names the release for the digest; empty means that of this build.
	Release string
	// WarnApply is the duration above which a request counts as slow; 0 means
	// never.
	WarnApply time.Duration
	Logger    *zap.Logger
}

// Machine is the state of one member: it opens the parts, each of which applies one kind of
// requests, and dispatches entries to them. Apply must be called from one goroutine; the parts that readers use
// (KV, Lessor, Alarms, Applied) are safe for concurrent use.
type Machine struct {
	eng    engine.Engine
	digest *digest.Digest
	opts   Options
	lg     *zap.Logger

	keys    keyspace
	leases  leases
	users   users
	members members
	alarms  alarms
	quota   quota
	legacy  legacy

	applied   atomic.Uint64
	snapshots atomic.Int64 // that are open
	term      ids.Term     // of the entry at applied
}

var (
	appliedKey = engine.Meta.K([]byte("consistent_index"))
	termKey    = engine.Meta.K([]byte("term"))
)

// Position reads the applied index and its term from an engine or a snapshot of
// one; both are 0 in a new store.
func Position(r engine.Reader) (index ids.Index, term ids.Term, err error) {
	if index, err = readNumber[ids.Index](r, appliedKey); err != nil {
		return 0, 0, fmt.Errorf("read applied index: %w", err)
	}
	if term, err = readNumber[ids.Term](r, termKey); err != nil {
		return 0, 0, fmt.Errorf("read applied term: %w", err)
	}
	return index, term, nil
}

// SetPosition writes what Position reads, for a store created from a backup.
func SetPosition(b engine.Batch, index ids.Index, term ids.Term) {
	b.Set(appliedKey, binary.BigEndian.AppendUint64(nil, uint64(index)))
	b.Set(termKey, binary.BigEndian.AppendUint64(nil, uint64(term)))
}

func readNumber[T ~uint64](r engine.Reader, key []byte) (T, error) {
	v, err := r.Get(nil, key)
	if errors.Is(err, engine.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, &engine.CorruptionError{File: strconv.Quote(string(key[1:])), Err: fmt.Errorf("value of %d bytes, want 8", len(v))}
	}
	return T(binary.BigEndian.Uint64(v)), nil
}

// Open restores the machine from the engine. It also loads the cluster, the
// lessor and the auth store of the options.
func Open(eng engine.Engine, o Options) (*Machine, error) {
	if o.Auth == nil {
		o.Auth = auth.NewStore(auth.NewSimpleTokens(0))
	}
	m := &Machine{eng: eng, opts: o, lg: o.Logger}
	index, term, err := Position(eng)
	if err != nil {
		return nil, err
	}
	if m.opts.Release == "" {
		m.opts.Release = build.Version + " " + build.Commit()
	}
	if m.digest, err = digest.Open(eng, index, m.opts.Release); err != nil {
		return nil, err
	}
	kv, err := mvcc.Open(eng, o.MVCC)
	if err != nil {
		return nil, fmt.Errorf("open key space: %w", err)
	}
	m.keys = keyspace{kv: kv, lessor: o.Lessor}
	m.leases = leases{keys: &m.keys, cluster: o.Cluster, now: o.Now, persist: o.PersistCheckpoints}
	m.users = users{auth: o.Auth, keys: &m.keys, now: o.Now, lg: o.Logger}
	m.members = members{cluster: o.Cluster, legacy: &m.legacy, lg: o.Logger}
	m.quota.eng, m.quota.limit = eng, o.Quota
	if err := m.restore(); err != nil {
		kv.Close()
		return nil, err
	}
	if err := m.legacy.load(eng, index, o); err != nil {
		kv.Close()
		return nil, err
	}
	m.applied.Store(uint64(index))
	m.term = term
	m.SetSize(eng.Size().Total)
	return m, nil
}

// restore loads the parts whose records are in the engine.
func (m *Machine) restore() error {
	if err := m.leases.load(m.eng, m.lg); err != nil {
		return err
	}
	if err := m.opts.Cluster.Load(m.eng); err != nil {
		return fmt.Errorf("load membership: %w", err)
	}
	if err := m.alarms.load(m.eng); err != nil {
		return fmt.Errorf("load alarms: %w", err)
	}
	if err := m.users.load(m.eng); err != nil {
		return fmt.Errorf("load users and roles: %w", err)
	}
	return nil
}

// KV returns the key space, for readers.
func (m *Machine) KV() *mvcc.Store { return m.keys.kv }

// Engine returns the engine under the machine.
func (m *Machine) Engine() engine.Engine { return m.eng }

// Applied returns the index of the newest entry whose effects readers can see.
func (m *Machine) Applied() ids.Index { return ids.Index(m.applied.Load()) }

// Digest returns the digest of what was applied.
func (m *Machine) Digest() *digest.Digest { return m.digest }

// V2 returns the tree of the v2 API.
func (m *Machine) V2() *v2store.Store { return m.legacy.state.Tree() }

// Alarms returns the active alarms, sorted by member, then type. The caller must not modify
// the slice.
func (m *Machine) Alarms() []*pb.AlarmMember { return m.alarms.list() }

// ConfState derives raft's configuration from the membership.
func (m *Machine) ConfState() *raftpb.ConfState { return m.members.confState() }

// OverQuota reports whether the store has no room for n more bytes.
func (m *Machine) OverQuota(n int64) bool { return m.quota.exceeded(n) }

// SetSize sets the physical size of the machine's engine, in bytes.
func (m *Machine) SetSize(n int64) { m.quota.size.Store(n) }

// Close stops the machine's background work; the engine stays open.
func (m *Machine) Close() { m.keys.kv.Close() }

// Apply applies a run of entries as one batch. An error means that this member
// cannot continue; nothing of the run is then visible, unless it is that of a commit, which
// may still happen, as a whole (engine.Batch).
func (m *Machine) Apply(ents []Entry) (Outcome, error) {
	var out Outcome
	b := m.eng.NewBatch()
	summed := m.digest.Begin(b)
	applied := ids.Index(m.applied.Load())
	for i := range ents {
		e := &ents[i]
		if ids.Index(e.GetIndex()) <= applied {
			continue
		}
		m.digest.Entry(ids.Index(e.GetIndex()), ids.Term(e.GetTerm()))
		if err := m.one(summed, e, &out); err != nil {
			b.Discard()
			return Outcome{}, fmt.Errorf("apply entry %d of term %d: %w", e.GetIndex(), e.GetTerm(), err)
		}
		m.digest.Applied()
		applied = ids.Index(e.GetIndex())
		m.term = ids.Term(e.GetTerm())
	}
	var v [8]byte
	binary.BigEndian.PutUint64(v[:], uint64(applied))
	b.Set(appliedKey, v[:])
	binary.BigEndian.PutUint64(v[:], uint64(m.term))
	b.Set(termKey, v[:])
	m.digest.Store(b)
	m.quota.size.Add(int64(b.Len()))
	start := m.opts.Now()
	if err := b.Commit(); err != nil {
		return Outcome{}, fmt.Errorf("commit entries up to %d: %w", applied, err)
	}
	took := m.opts.Now().Sub(start).Seconds()
	metrics.DiskBackendCommitDurationSeconds.Observe(took)
	metrics.DebuggingDiskBackendCommitWriteDurationSeconds.Observe(took) // there is no other part
	// Publish auth first: a reader that sees a key must see the permissions
	// decided before it.
	out.AuthChanged = m.users.auth.Publish()
	m.keys.kv.Publish()
	m.digest.Publish()
	m.applied.Store(uint64(applied))
	out.Applied = applied
	out.Rev = m.keys.kv.Rev()
	return out, nil
}

func (m *Machine) one(b engine.Batch, e *Entry, out *Outcome) error {
	switch e.GetType() {
	case raftpb.EntryConfChange:
		return m.members.change(b, e, out)
	case raftpb.EntryConfChangeV2:
		m.members.refuse(e, &raftpb.ConfChange{}, ErrConfChangeV2, out)
		return nil
	case raftpb.EntryNormal:
	default:
		m.refuse(e, errEntryType, out)
		return nil
	}
	if len(e.Data) == 0 {
		out.NewTerm = ids.Term(e.GetTerm())
		return nil
	}
	req, foreign, err := e.contents()
	if err != nil {
		m.refuse(e, err, out)
		return nil
	}
	if req == nil {
		m.legacy.request(b, e, foreign, m.opts.Now, out)
		return nil
	}
	start := m.opts.Now()
	res := m.dispatch(b, e, req, out)
	if errors.Is(res.Err, errFatal) {
		return res.Err
	}
	res.ID = command.ID(req)
	if !res.refused {
		took := m.opts.Now().Sub(start)
		ok := res.Err == nil || errors.Is(res.Err, rpctypes.ErrGRPCCompacted)
		observe(command.Op(req), ok, took)
		if m.opts.WarnApply > 0 && took > m.opts.WarnApply && len(out.Slow) < maxNoted {
			out.Slow = append(out.Slow, Reported{req, res.Resp, res.Err, took})
		}
		if !ok && len(out.Failed) < maxNoted {
			out.Failed = append(out.Failed, Reported{req, res.Resp, res.Err, took})
		}
	}
	if e.Local {
		out.Results = append(out.Results, res)
	}
	return nil
}

// refuse skips an entry that no member can interpret. Whatever its origin, it must
// not stop the members: they would stop again at every start.
func (m *Machine) refuse(e *Entry, err error, out *Outcome) {
	m.lg.Error("skipped a log entry that cannot be applied; all members of this release skip it",
		zap.Uint64("index", e.GetIndex()), zap.Uint64("term", e.GetTerm()), zap.Stringer("type", e.GetType()), zap.Int("size", len(e.Data)), zap.Error(err))
	if id, ok := command.PeekID(e.Data); ok && e.Local {
		out.Results = append(out.Results, Result{ID: id, Err: err})
	}
}

// errFatal marks errors that are not for the client but stop this member:
// its disk or its bookkeeping has failed.
var errFatal = errors.New("state machine failed")

func fatal(err error) Result { return Result{Err: fmt.Errorf("%w: %w", errFatal, err)} }

func (m *Machine) dispatch(b engine.Batch, e *Entry, r *pb.InternalRaftRequest, out *Outcome) Result {
	switch {
	case r.ClusterVersionSet != nil, r.ClusterMemberAttrSet != nil, r.DowngradeInfoSet != nil:
		return m.members.request(b, r, out)
	case r.DowngradeVersionTest != nil, r.Range != nil:
		return Result{}
	}
	if err := m.alarms.forbid(r); err != nil {
		return Result{Err: err}
	}
	over := m.quota.exceededBy(r)
	if err := m.users.permitted(r); err != nil {
		return Result{Err: err, refused: adminOnly(r)}
	}
	res := m.request(b, e, r, out)
	if over && res.Err == nil {
		out.QuotaExceeded = true
		res.Err = rpctypes.ErrGRPCNoSpace
	}
	return res
}

func (m *Machine) request(b engine.Batch, e *Entry, r *pb.InternalRaftRequest, out *Outcome) Result {
	switch {
	case r.Put != nil:
		return m.keys.put(b, r.Put, out)
	case r.Txn != nil:
		return m.keys.txn(b, r.Txn, e.Local, out)
	case r.DeleteRange != nil:
		return m.keys.deleteRange(b, r.DeleteRange, out)
	case r.Compaction != nil:
		return m.keys.compact(b, r.Compaction)
	case r.LeaseGrant != nil:
		return m.leases.grant(b, r.LeaseGrant)
	case r.LeaseRevoke != nil:
		return m.leases.revoke(b, r.LeaseRevoke, out)
	case r.LeaseCheckpoint != nil:
		return m.leases.checkpoint(b, r.LeaseCheckpoint)
	case r.Alarm != nil:
		return m.alarms.apply(b, r.Alarm, m.keys.header())
	}
	return m.users.request(b, e, r)
}
