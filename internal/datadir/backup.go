package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/boltdb"
	"quorate/internal/clock"
	"quorate/internal/command"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// Backup is what etcd up to 3.5 calls a backup: a copy of the directory of a stopped
// member, of etcd or of Quorate, from which either program, started with
// --force-new-cluster, makes a new cluster of one.
type Backup struct {
	From, To Layout
	// V3 includes the data of the v3 API; without it the copy holds the data of the
	// v2 API alone.
	V3 bool
	// Wait bounds how long to wait for another process that holds the database; 0
	// means a second, as in etcd.
	Wait time.Duration
}

// The only member of a backup, until --force-new-cluster gives it a real one.
const (
	backupMember = "etcdctl-v2-backup"
	backupURL    = "http://use-flag--force-new-cluster:2080"
)

// attributesPath is the key under which members of etcd 3.5 publish their attributes.
var attributesPath = regexp.MustCompile(`/0/members/[[:xdigit:]]{1,16}/attributes`)

// Make writes the backup. After an error the target is incomplete and must not be
// used. The source directory is not changed.
func (b Backup) Make(ctx context.Context, o Options) error {
	o = o.withDefaults()
	if b.Wait == 0 {
		b.Wait = time.Second
	}
	kind, err := b.From.Kind()
	if err != nil {
		return err
	}
	switch kind {
	case Empty:
		if _, err := os.Stat(b.From.DB()); err != nil {
			return err
		}
		return fmt.Errorf("there is no store in %s", b.From.Member())
	case Both:
		return b.From.errUndecided()
	case Moving:
		return fmt.Errorf("a move of %s to or from etcd was interrupted: start the server, or run 'etcdutl migrate --to-etcd', again", b.From.DataDir)
	}
	if err := durable.MkdirAll(b.To.FS, b.To.Snap()); err != nil {
		return fmt.Errorf("failed creating backup snapshot dir: %w", err)
	}
	if names, err := b.To.FS.List(b.To.Snap()); err != nil || len(names) > 0 {
		return fmt.Errorf("failed creating backup snapshot dir: %w", errors.Join(err, fmt.Errorf("expected %q to be empty, got %q", b.To.Snap(), names)))
	}
	now := clock.Now()
	c := copier{Backup: b, Options: o, only: membership.NewMember([]string{backupURL}, false, now)}
	c.only.Name = backupMember
	if kind == Etcds {
		err = c.fromEtcd(ctx)
	} else {
		c.ours = true
		err = c.fromOurs(ctx)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(b.To.FS, b.To.Member())
}

type copier struct {
	Backup
	Options
	only membership.Member
	ours bool // the source is a directory of Quorate
}

func (c *copier) confState() *raftpb.ConfState {
	return &raftpb.ConfState{Voters: []uint64{uint64(c.only.ID)}}
}

// fromEtcd copies the newest .snap file, the database, and the log entries after the
// .snap file.
func (c *copier) fromEtcd(ctx context.Context) error {
	fs := c.From.FS
	names, err := snapshot.Snaps(c.From.Snap(), snapshot.Options{FS: fs})
	if err != nil {
		return err
	}
	var meta *raftpb.SnapshotMetadata
	for _, name := range names {
		s, err := snapshot.LoadSnap(fs.PathJoin(c.From.Snap(), name), snapshot.Options{FS: fs})
		if err != nil {
			c.Logger.Warn("failed to read a snap file", zap.String("path", fs.PathJoin(c.From.Snap(), name)), zap.Error(err))
			continue
		}
		if s.Data, err = c.translate(s.Data); err != nil {
			return fmt.Errorf("cannot translate v2store: %w", err)
		}
		s.Metadata.ConfState = c.confState()
		if err := snapshot.SaveSnap(c.To.Snap(), s, snapshot.Options{FS: c.To.FS}); err != nil {
			return fmt.Errorf("saveSnap(Snapshoter.SaveSnap) failed: %w", err)
		}
		meta = s.GetMetadata()
		break
	}
	contents, err := raftlog.Inspect(fs, c.From.WAL(), nil)
	if err != nil {
		return err
	}
	if c.V3 {
		if err := boltdb.Copy(c.From.DB(), c.To.DB(), c.Wait); err != nil {
			return c.locked(err)
		}
	}
	if err := c.finishDB(contents.HardState); err != nil {
		return err
	}
	return c.writeLog(ctx, contents, meta)
}

// locked rewrites an error about the lock in etcd's words.
func (c *copier) locked(err error) error {
	if errors.Is(err, boltdb.ErrInUse) || errors.Is(err, ErrInUse) {
		return fmt.Errorf("timed out waiting to acquire lock on: %w", err)
	}
	return err
}

// translate replaces the members in a dump of the v2 store with the only member.
func (c *copier) translate(dump []byte) ([]byte, error) {
	_, _, version, err := snapshot.ParseV2Store(dump)
	if err != nil {
		return nil, err
	}
	scratch := mem.New()
	defer scratch.Close()
	b := scratch.NewBatch()
	if err := restoreDump(b, dump); err != nil {
		b.Discard()
		return nil, err
	}
	if err := b.Commit(); err != nil {
		return nil, err
	}
	return c.v2Store(version, scratch)
}

func (c *copier) v2Store(version string, tree engine.Reader) ([]byte, error) {
	return snapshot.V2Store([]snapshot.Member{{ID: c.only.ID, Name: c.only.Name, PeerURLs: c.only.PeerURLs}}, nil, version, tree)
}

// fromOurs writes our state in etcd's format.
func (c *copier) fromOurs(ctx context.Context) (err error) {
	var eng engine.Engine
	for deadline := clock.Now().Add(c.Wait); ; clock.Pause(20 * time.Millisecond) {
		if eng, err = ReadStore(c.From, c.Logger); !errors.Is(err, ErrInUse) || clock.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return c.locked(err)
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	meta, _, err := Describe(eng, c.Version, false)
	if err != nil {
		return err
	}
	contents, err := raftlog.Inspect(c.From.FS, c.From.WAL(), nil)
	if err != nil {
		return err
	}
	meta.ConfState = c.confState()
	if meta.GetIndex() > 0 {
		// Without the cluster version: the new cluster decides its own, and etcd 3.5, which
		// may be the one to read the data of the v2 API, does not start on a later one.
		data, err := c.v2Store("", eng)
		if err != nil {
			return err
		}
		if err := snapshot.SaveSnap(c.To.Snap(), &raftpb.Snapshot{Data: data, Metadata: meta}, snapshot.Options{FS: c.To.FS}); err != nil {
			return err
		}
	}
	if c.V3 {
		if _, err := snapshot.Export(ctx, eng, c.To.DB(), snapshot.Options{FS: c.To.FS, WithoutV2: true}); err != nil {
			return err
		}
	}
	if err := c.finishDB(contents.HardState); err != nil {
		return err
	}
	if err := c.asOf35(); err != nil {
		return err
	}
	return c.writeLog(ctx, contents, meta)
}

// asOf35 removes the storage version from the database: if there is one, the data of
// the v2 API is not looked for in the .snap file.
func (c *copier) asOf35() error {
	db, err := boltdb.Open(c.To.DB(), c.Wait)
	if err != nil {
		return err
	}
	return errors.Join(db.SetStorageVersion(""), db.Close())
}

// finishDB makes the only member the sole member in the database. Without V3 the
// database is otherwise empty.
func (c *copier) finishDB(hs *raftpb.HardState) (err error) {
	c.Logger.Info(trimming)
	var db *boltdb.DB
	if c.V3 {
		db, err = boltdb.Open(c.To.DB(), c.Wait)
	} else {
		db, err = boltdb.Create(c.To.DB())
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if !c.V3 {
		if err := db.SetPosition(ids.Index(hs.GetCommit()), ids.Term(hs.GetTerm())); err != nil {
			return err
		}
	}
	return db.ReplaceMembers([]membership.Member{c.only})
}

// writeLog copies the log entries after the newest .snap file. Entries that must not
// take effect keep their index and term and lose their content.
func (c *copier) writeLog(ctx context.Context, from *raftlog.Contents, meta *raftpb.SnapshotMetadata) (err error) {
	if err := durable.MkdirAll(c.To.FS, c.To.FS.PathDir(c.To.WAL())); err != nil {
		return err
	}
	log, err := raftlog.Create(c.To.FS, c.To.WAL(), from.Metadata, raftlog.Options{NoBackground: true, Logger: c.Logger})
	if err != nil {
		return fmt.Errorf("wal.Create failed: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	index := ids.Index(meta.GetIndex())
	if index > 0 {
		if err := log.Reset(raftlog.SnapshotMark{Index: index, Term: ids.Term(meta.GetTerm()), ConfState: c.confState()}); err != nil {
			return err
		}
	}
	var batch []*raftpb.Entry
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := log.Append(nil, batch, false)
		batch, size = nil, 0
		return errors.Join(err, context.Cause(ctx))
	}
	_, err = raftlog.Inspect(c.From.FS, c.From.WAL(), func(at ids.Index, term ids.Term, t raftpb.EntryType, data []byte) error {
		if at <= index {
			return nil
		}
		if n := len(batch); n > 0 && at <= ids.Index(batch[n-1].GetIndex()) { // replaced by another leader
			if err := flush(); err != nil {
				return err
			}
		}
		e := c.translateEntry(&raftpb.Entry{Type: t.Enum(), Term: new(uint64(term)), Index: new(uint64(at)), Data: slices.Clone(data)})
		batch = append(batch, e)
		if size += len(e.Data); size < 4<<20 {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	// All of it is committed in the cluster that a backup becomes: no other member can
	// replace these entries, and every acknowledged write is among them.
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	hs := from.HardState
	return log.Append(&raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(last)}, nil, true)
}

func (c *copier) translateEntry(e *raftpb.Entry) *raftpb.Entry {
	nothing := func(why string) *raftpb.Entry {
		c.Logger.Info(why, zap.Uint64("entry-index", e.GetIndex()))
		return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: e.Term, Index: e.Index}
	}
	switch {
	case e.GetType() != raftpb.EntryNormal:
		return nothing("ignoring EntryConfChange raft entry")
	case len(e.Data) == 0:
		return e
	}
	e.Data = v2request.Plain(e.Data)
	if r, ok, err := v2request.Parse(e.Data); err == nil && ok {
		if r.Method == "PUT" && attributesPath.MatchString(r.Path) {
			return nothing("ignoring member attribute update on")
		}
		return e
	}
	r, err := command.Decode(e.Data)
	switch {
	case err != nil:
		return e
	case r.ClusterMemberAttrSet != nil:
		return nothing("ignoring cluster_member_attr_set")
	case c.ours && r.ClusterVersionSet != nil:
		return nothing("ignoring cluster_version_set") // as in the state: the new cluster decides its own
	case c.ours && r.DowngradeInfoSet != nil:
		return nothing("ignoring downgrade_info_set") // etcd 3.5 does not start during a downgrade to another release
	case !c.V3 && r.Header != nil:
		return nothing("ignoring v3 raft entry")
	}
	return e
}
