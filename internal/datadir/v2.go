package datadir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/clock"
	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// RestoreV2 writes the tree of the v2 API that comes with a snapshot of etcd 3.5 to b:
// eng holds its database, meta the metadata of that, data the dump of the v2 store that
// came with it. It does nothing if the database already contains the tree, as one of
// Quorate does, or is of a later release, which has none.
func RestoreV2(b engine.Batch, eng engine.Reader, meta snapshot.Meta, data []byte) error {
	if meta.StorageVersion != "" || len(data) == 0 {
		return nil
	}
	if there, err := holds(eng, engine.V2); err != nil || there {
		return err
	}
	if err := restoreDump(b, data); err != nil {
		return fmt.Errorf("data of the v2 API in the raft snapshot: %w", err)
	}
	return nil
}

// restoreDump writes the tree of a dump to b. A dump of a member that keeps no tree
// describes the membership alone, which its index shows; then it does nothing.
func restoreDump(b engine.Batch, data []byte) error {
	d, err := v2store.ParseDump(data)
	if err != nil || d.CurrentIndex <= 1 {
		return err
	}
	return d.Restore(b)
}

func holds(r engine.Reader, b engine.Bucket) (there bool, err error) {
	lower, upper := b.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	there = it.First()
	return there, it.Error()
}

// fillV2 copies the tree of the v2 API into the new store. Etcd 3.5 keeps the tree in
// memory: the newest .snap file has it as it was then, and the entries after that are
// replayed.
func (e *etcds) fillV2(ctx context.Context, l Layout, eng engine.Engine, o Options, lg *zap.Logger) (err error) {
	if !e.is35() {
		return nil
	}
	scratch := mem.New()
	defer scratch.Close()
	if err := e.beginV2(scratch); err != nil {
		return err
	}
	mach, err := apply.Open(scratch, apply.Options{
		Cluster: membership.New(membership.Options{ServerVersion: o.Version, Aside: true}),
		Lessor:  lease.New(1, lease.Options{}), MVCC: mvcc.Options{Manual: true}, Now: clock.Now, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer mach.Close()
	if at := mach.Applied(); len(e.terms) > 0 && e.terms[0].from > at+1 && e.meta.ConsistentIndex > at {
		lg.Error("the raft log does not reach back to the newest .snap file: what clients of the v2 API wrote between the two is missing",
			zap.Uint64("snapshot-index", uint64(at)), zap.Uint64("first-entry", uint64(e.terms[0].from)))
	}
	if err := e.replayV2(ctx, l, mach); err != nil {
		return err
	}
	if !mach.V2().Written() && mach.V2().Index() == 0 {
		return nil
	}
	lg.Info("took over the data of the v2 API", zap.Uint64("index", mach.V2().Index()), zap.Bool("written", mach.V2().Written()))
	return copyBucket(ctx, eng, scratch, engine.V2, o.BatchBytes)
}

// beginV2 restores the state of the newest .snap file, as far as the tree depends on it.
func (e *etcds) beginV2(eng engine.Engine) error {
	if e.snap == nil {
		return nil
	}
	members, removed, version, err := snapshot.ParseV2Store(e.snap.Data)
	if err != nil {
		return fmt.Errorf("membership in the newest .snap file: %w", err)
	}
	b := eng.NewBatch()
	fill := func() error {
		for _, m := range members {
			x := membership.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner}
			if err := membership.Put(b, x); err != nil {
				return err
			}
		}
		for _, id := range removed {
			b.Set(engine.MembersRemoved.K([]byte(id.String())), []byte("removed"))
		}
		if version != "" {
			b.Set(engine.Cluster.K([]byte("clusterVersion")), []byte(version))
		}
		apply.SetPosition(b, ids.Index(e.snap.GetMetadata().GetIndex()), ids.Term(e.snap.GetMetadata().GetTerm()))
		if err := restoreDump(b, e.snap.Data); err != nil {
			return fmt.Errorf("data of the v2 API in the newest .snap file: %w", err)
		}
		return nil
	}
	if err := fill(); err != nil {
		b.Discard()
		return err
	}
	return b.Commit()
}

// replayBytes bounds the size of the entries that are applied in one batch.
const replayBytes = 4 << 20

// replayV2 applies the entries up to the index of the database that concern the tree:
// v2 requests and membership changes.
func (e *etcds) replayV2(ctx context.Context, l Layout, mach *apply.Machine) error {
	var ents []apply.Entry
	size := 0
	flush := func() error {
		if len(ents) == 0 {
			return nil
		}
		_, err := mach.Apply(ents)
		ents, size = ents[:0], 0
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	newest := mach.Applied()
	_, err := raftlog.Inspect(l.FS, l.WAL(), func(index ids.Index, term ids.Term, t raftpb.EntryType, data []byte) error {
		if index <= newest || index > e.meta.ConsistentIndex || term != e.term(index) || !movesV2(t, data) {
			return nil
		}
		newest = index
		ents = append(ents, apply.Entry{Entry: &raftpb.Entry{Type: t.Enum(), Term: new(uint64(term)), Index: new(uint64(index)), Data: slices.Clone(data)}})
		if size += len(data); size < replayBytes {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("replay the writes of the v2 API: %w", err)
	}
	return nil
}

// term returns the term of the valid entry at an index of the log.
func (e *etcds) term(index ids.Index) ids.Term {
	i := sort.Search(len(e.terms), func(i int) bool { return e.terms[i].from > index })
	if i == 0 {
		return 0
	}
	return e.terms[i-1].term
}

func movesV2(t raftpb.EntryType, data []byte) bool {
	if t == raftpb.EntryConfChange {
		return true
	}
	if len(data) == 0 {
		return false
	}
	if is, _, _ := v2request.Look(data); is {
		return true
	}
	r, err := command.Decode(data)
	return err == nil && (r.ClusterVersionSet != nil || r.ClusterMemberAttrSet != nil)
}

// copyBucket copies the pairs of one bucket, in batches.
func copyBucket(ctx context.Context, to engine.Engine, from engine.Reader, bucket engine.Bucket, batchBytes int) (err error) {
	if batchBytes <= 0 {
		batchBytes = 4 << 20
	}
	lower, upper := bucket.Bounds()
	it, err := from.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	b := to.NewBatch()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			b.Discard()
			return err
		}
		if b.Set(it.Key(), v); b.Len() < batchBytes {
			continue
		}
		if err := b.Commit(); err != nil {
			return err
		}
		if b = to.NewBatch(); ctx.Err() != nil {
			b.Discard()
			return context.Cause(ctx)
		}
	}
	if err := it.Error(); err != nil {
		b.Discard()
		return err
	}
	return b.Commit()
}

// checkV2 refuses to drop data of the v2 API unless DropV2 is set.
func checkV2(eng engine.Reader, target membership.Version, o Options) error {
	if target.Less(membership.FirstWithoutV2) || o.DropV2 {
		return nil
	}
	d := v2store.NewDump()
	if err := d.Fill(eng); err != nil {
		return err
	}
	key := strings.TrimPrefix(d.ClientKey(), "/1")
	if auth := d.Root.Child("2"); auth != nil && key == "" {
		for _, dir := range auth.Children { // they stay when the last user and role have gone
			if len(dir.Children) > 0 {
				key = "users and roles"
			}
		}
	}
	if key != "" {
		to35 := "go to etcd 3.5 (--target-version 3.5)"
		c := membership.New(membership.Options{ServerVersion: o.Version, Aside: true})
		if err := c.Load(eng); err != nil {
			return err
		}
		if membership.V35.Less(c.Version().MajorMinor()) { // then etcd 3.5 does not start on the directory itself
			to35 = "make a copy for etcd 3.5 with 'etcdutl backup'"
		}
		return fmt.Errorf("the store holds data of the v2 API (%s), which etcd %d.%d does not keep: %s, "+
			"delete the data through the API, or leave it behind with --drop-v2", key, target.Major, target.Minor, to35)
	}
	return nil
}
