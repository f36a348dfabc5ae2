package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

var (
	ctx = context.Background()
	own = membership.Version{Major: 3, Minor: 7, Patch: 3}
	opt = Options{Version: own}
)

const (
	memberID  = 0x1f
	clusterID = 0x2f
)

// directory describes a directory of etcd to create.
type directory struct {
	applied, last  ids.Index    // entries in the store and in the log, of term 2
	commit         ids.Index    // in the log's hard state; 0: all
	voters         []ids.Member // in addition to the member itself
	clusterVersion string
	storageVersion string
	snap           []byte // Data of a .snap file at entry 3; nil: no file
	changes        map[ids.Index]*raftpb.ConfChange
	requests       map[ids.Index][]byte
	keys           int
}

var plain = directory{applied: 20, last: 24, clusterVersion: "3.7.0", storageVersion: "3.7.0", keys: 20}

func u64(v ids.Index) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func revision(main int64) []byte {
	return append(append(u64(ids.Index(main)), '_'), u64(0)...)
}

// make writes the directory.
func (d directory) make(t *testing.T, l Layout) {
	t.Helper()
	must(t, durable.MkdirAll(l.FS, l.Member(), l.Snap()))
	log, err := raftlog.Create(l.FS, l.WAL(), raftlog.Metadata{NodeID: memberID, ClusterID: clusterID}, raftlog.Options{SegmentBytes: 1 << 16, NoBackground: true})
	must(t, err)
	var ents []*raftpb.Entry
	for i := ids.Index(1); i <= d.last; i++ {
		e := &raftpb.Entry{Term: new(uint64(2)), Index: new(uint64(i))}
		if cc := d.changes[i]; cc != nil {
			e.Type = raftpb.EntryConfChange.Enum()
			if e.Data, err = proto.Marshal(cc); err != nil {
				t.Fatal(err)
			}
		}
		if d.requests[i] != nil {
			e.Data = d.requests[i]
		}
		ents = append(ents, e)
	}
	commit := d.commit
	if commit == 0 {
		commit = d.last
	}
	must(t, log.Append(&raftpb.HardState{Term: new(uint64(2)), Vote: new(uint64(memberID)), Commit: new(uint64(commit))}, ents, true))
	cs := &raftpb.ConfState{Voters: []uint64{memberID}}
	must(t, log.SaveMark(raftlog.SnapshotMark{Index: 3, Term: 2, ConfState: cs}))
	must(t, log.Close())
	if d.snap != nil {
		must(t, snapshot.SaveSnap(l.Snap(), &raftpb.Snapshot{Data: d.snap, Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(3)), Term: new(uint64(2)), ConfState: cs}}, snapshot.Options{FS: l.FS}))
	}

	eng := mem.New()
	defer eng.Close()
	b := eng.NewBatch()
	set := func(bucket engine.Bucket, k string, v []byte) { b.Set(bucket.K([]byte(k)), v) }
	for i := range d.keys {
		kv, err := proto.Marshal(&mvccpb.KeyValue{Key: fmt.Appendf(nil, "key%04d", i), CreateRevision: int64(i + 2), ModRevision: int64(i + 2), Version: 1, Value: bytes.Repeat([]byte("v"), 200)})
		must(t, err)
		b.Set(engine.Key.K(revision(int64(i+2))), kv)
	}
	set(engine.Meta, "consistent_index", u64(d.applied))
	set(engine.Meta, "term", u64(2))
	set(engine.Auth, "authRevision", u64(7))
	if d.storageVersion != "" {
		set(engine.Meta, "storageVersion", []byte(d.storageVersion))
	}
	if d.clusterVersion != "" {
		set(engine.Cluster, "clusterVersion", []byte(d.clusterVersion))
	}
	must(t, membership.Put(b, membership.Member{ID: memberID, Name: "m", PeerURLs: []string{"http://a:1"}, ClientURLs: []string{"http://a:2"}}))
	for _, id := range d.voters {
		must(t, membership.Put(b, membership.Member{ID: id, Name: "other", PeerURLs: []string{fmt.Sprintf("http://a:%d", id)}}))
	}
	must(t, b.Commit())
	_, err = snapshot.Export(ctx, eng, l.DB(), snapshot.Options{FS: l.FS, PageSize: 4096})
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sum hashes every pair except those that only one of the two formats has.
func sum(t *testing.T, r engine.Reader) uint32 {
	t.Helper()
	lower, _ := engine.Alarm.Bounds()
	_, upper := engine.Meta.Bounds()
	it, err := r.NewIter(lower, upper)
	must(t, err)
	defer it.Close()
	h := crc32.NewIEEE()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		h.Write(it.Key())
		h.Write(v)
	}
	must(t, it.Error())
	return h.Sum32()
}

func sumDB(t *testing.T, l Layout) uint32 {
	t.Helper()
	eng := mem.New()
	defer eng.Close()
	_, err := snapshot.Read(ctx, l.DB(), eng, snapshot.Options{FS: l.FS})
	must(t, err)
	return sum(t, eng)
}

func sumStore(t *testing.T, l Layout) uint32 {
	t.Helper()
	eng, err := OpenStore(l, opt.withDefaults().Logger)
	must(t, err)
	defer eng.Close()
	return sum(t, eng)
}

func takeOver(l Layout) error {
	tk, err := Begin(ctx, l, opt)
	if err != nil || tk == nil {
		return err
	}
	return errors.Join(tk.Finish(), tk.Abandon(nil))
}

// tree lists every file with its checksum.
func tree(t *testing.T, fs vfs.FS, dir string) []string {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	var out []string
	for _, n := range names {
		p := fs.PathJoin(dir, n)
		if st, err := fs.Stat(p); err == nil && st.IsDir() {
			out = append(out, tree(t, fs, p)...)
			continue
		}
		f, err := fs.Open(p)
		must(t, err)
		b, err := io.ReadAll(f)
		must(t, errors.Join(err, f.Close()))
		out = append(out, fmt.Sprintf("%s %d %x", p, len(b), crc32.ChecksumIEEE(b)))
	}
	slices.Sort(out)
	return out
}

func TestThereAndBack(t *testing.T) {
	for _, walDir := range []string{"", "elsewhere/wal"} {
		l := Layout{FS: vfs.NewMem(), DataDir: "data", WALDir: walDir}
		plain.make(t, l)
		want := sumDB(t, l)
		must(t, takeOver(l))
		if kind, err := l.Kind(); err != nil || kind != Ours {
			t.Fatalf("taken over: kind %v, %v", kind, err)
		}
		if got := sumStore(t, l); got != want {
			t.Errorf("the store has sum %x, etcd's had %x", got, want)
		}
		kept := Layout{FS: l.FS, DataDir: "kept"}
		must(t, durable.MkdirAll(l.FS, kept.Member()))
		must(t, l.FS.Rename("data/member/snap.etcd-0000000000000014", kept.Snap()))
		if got := sumDB(t, kept); got != want {
			t.Errorf("etcd's file has sum %x after it was put aside, had %x", got, want)
		}
		if err := takeOver(l); err != nil {
			t.Errorf("a second start: %v", err)
		}

		aside, err := Leave(ctx, l, own, opt)
		must(t, err)
		if got := sumDB(t, l); got != want {
			t.Errorf("the exported store has sum %x, want %x", got, want)
		}
		if kind, err := l.Kind(); err != nil || kind != Etcds {
			t.Errorf("handed back: kind %v, %v", kind, err)
		}
		if ok, _ := exists(l.FS, aside); !ok {
			t.Errorf("our store is not in %s", aside)
		}
		c, err := raftlog.Inspect(l.FS, l.WAL(), nil)
		must(t, err)
		if c.Mark.Index != 20 || c.Mark.Term != 2 || !slices.Equal(c.Mark.ConfState.GetVoters(), []uint64{memberID}) || c.Last != 24 {
			t.Errorf("mark %+v, last entry %d", c.Mark, c.Last)
		}
		s, err := snapshot.LoadSnap(l.FS.PathJoin(l.Snap(), snapshot.SnapName(2, 20)), snapshot.Options{FS: l.FS})
		must(t, err)
		if ms, _, v, err := snapshot.ParseV2Store(s.Data); err != nil || len(ms) != 1 || ms[0].ID != memberID || v != "3.7.0" {
			t.Errorf(".snap file: members %v, version %q, %v", ms, v, err)
		}
		must(t, takeOver(l)) // once more
		if got := sumStore(t, l); got != want {
			t.Errorf("after there, back and there: sum %x, want %x", got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	corrupt := func(path string, off int64) func(*testing.T, Layout) {
		return func(t *testing.T, l Layout) {
			f, err := l.FS.OpenReadWrite(l.FS.PathJoin(l.Member(), path), vfs.WriteCategoryUnspecified)
			must(t, err)
			b := make([]byte, 64)
			_, err = f.ReadAt(b, off)
			must(t, err)
			for i := range b {
				b[i] ^= 0x5a
			}
			_, err = f.WriteAt(b, off)
			must(t, errors.Join(err, f.Sync(), f.Close()))
		}
	}
	with := func(f func(d *directory)) directory {
		d := plain
		f(&d)
		return d
	}
	for name, c := range map[string]struct {
		d      directory
		damage func(*testing.T, Layout)
		want   []string
	}{
		"newer storage":     {with(func(d *directory) { d.storageVersion, d.clusterVersion = "3.8.0", "" }), nil, []string{"member/snap/db", "storage version 3.8.0", "newer"}},
		"newer cluster":     {with(func(d *directory) { d.clusterVersion = "4.0.0" }), nil, []string{"cluster version 4.0.0"}},
		"old cluster":       {with(func(d *directory) { d.clusterVersion, d.storageVersion = "3.4.0", "" }), nil, []string{"start etcd 3.5"}},
		"log ends early":    {with(func(d *directory) { d.applied = 30 }), nil, []string{"ends at entry 24"}},
		"no log":            {plain, func(t *testing.T, l Layout) { must(t, l.FS.RemoveAll(l.WAL())) }, []string{"no raft log in data/member/wal", "--wal-dir"}},
		"page of the store": {plain, corrupt("snap/db", 2*4096), []string{"member/snap/db", "corrupt"}},
		"record of the log": {plain, corrupt("wal/0000000000000000-0000000000000000.wal", 200), []string{"0000000000000000-0000000000000000.wal", "corrupt"}},
		"more of the v2 API than there is room for": {with(func(d *directory) {
			d.storageVersion, d.clusterVersion, d.snap = "", "3.5.0", []byte(strings.ReplaceAll(v2Keys, "message", strings.Repeat("m", v2store.MaxPath)))
		}), nil, []string{".snap file", "v2 API", "longer than"}},
		"two stores":            {plain, func(t *testing.T, l Layout) { must(t, durable.MkdirAll(l.FS, l.firstStore())) }, []string{"two stores"}},
		"nonsense in STORE":     {plain, func(t *testing.T, l Layout) { must(t, WriteNote(l.FS, l.pointerFile(), "a b")) }, []string{"member/STORE"}},
		"parent dir in STORE":   {plain, func(t *testing.T, l Layout) { must(t, WriteNote(l.FS, l.pointerFile(), "../x")) }, []string{"member/STORE"}},
		"STORE without its sum": {plain, func(t *testing.T, l Layout) { must(t, durable.WriteFile(l.FS, l.pointerFile(), []byte("store\n"))) }, []string{"member/STORE", "checksum"}},
		"unknown task in STORE": {plain, func(t *testing.T, l Layout) { must(t, WriteNote(l.FS, l.pointerFile(), "a later b")) }, []string{"later"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := Layout{FS: vfs.NewMem(), DataDir: "data"}
			c.d.make(t, l)
			if c.damage != nil {
				c.damage(t, l)
			}
			before := tree(t, l.FS, "data")
			err := takeOver(l)
			if err == nil {
				t.Fatal("taken over")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if now := tree(t, l.FS, "data"); !slices.Equal(before, now) {
				t.Errorf("changed:\n%s\nwas\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

// v2Put is an entry in which etcd 3.5 writes to its v2 store.
func v2Put(path string) []byte {
	r := []byte{0x08, 7, 0x12, 3}
	r = append(r, "PUT"...)
	r = append(r, 0x1a, byte(len(path)))
	r = append(r, path...)
	value := `{"name":"m","clientURLs":["http://a:2"]}`
	r = append(r, 0x22, byte(len(value)))
	return append(r, value...)
}

// A log of etcd 3.5 holds v2 requests about member attributes; etcd 3.7 panics on one, so
// none may follow the mark of a directory that it gets.
func TestLeaveWithV2Requests(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	d := plain
	d.storageVersion, d.clusterVersion = "", "3.5.0"
	d.requests = map[ids.Index][]byte{9: v2Put("/0/members/1f/attributes"), 22: v2Put("/0/members/1f/attributes")}
	d.make(t, l)
	must(t, takeOver(l))
	if _, err := Leave(ctx, l, own, opt); err == nil || !strings.Contains(err.Error(), "entry 22") {
		t.Errorf("to etcd 3.7: %v", err)
	}
	if _, err := Leave(ctx, l, membership.Version{Major: 3, Minor: 6}, opt); err != nil {
		t.Errorf("to etcd 3.6: %v", err)
	}
}

// A snapshot that etcd has received and recorded, but not put in place.
func TestReceivedSnapshot(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	old := plain
	old.applied, old.keys = 2, 1 // below the mark at 3
	old.make(t, l)
	if err := takeOver(l); err == nil || !strings.Contains(err.Error(), "0000000000000003.snap.db") {
		t.Fatalf("without the file: %v", err)
	}
	other := Layout{FS: l.FS, DataDir: "other"}
	newer := plain
	newer.applied, newer.keys = 3, 9
	newer.make(t, other)
	want := sumDB(t, other)
	must(t, l.FS.Rename(other.DB(), l.FS.PathJoin(l.Snap(), snapshot.DBName(3))))
	must(t, takeOver(l))
	if got := sumStore(t, l); got != want {
		t.Errorf("the store has sum %x, the received file %x", got, want)
	}
}

const other, third = 0x3f, 0x4f

// stale35 creates a directory of etcd 3.5 in whose database the membership differs from
// the v2 store.
func stale35(t *testing.T, l Layout) {
	t.Helper()
	d := plain
	d.storageVersion, d.clusterVersion = "", "3.5.0"
	var err error
	d.snap, err = snapshot.V2Store([]snapshot.Member{
		{ID: memberID, Name: "m", PeerURLs: []string{"http://a:1"}, ClientURLs: []string{"http://a:2"}},
		{ID: other, Name: "o", PeerURLs: []string{"http://o:1"}, ClientURLs: []string{"http://o:2"}},
	}, nil, "3.5.0", nil)
	must(t, err)
	add, err := membership.AddChange(membership.Member{ID: third, PeerURLs: []string{"http://t:1"}})
	must(t, err)
	late, err := membership.AddChange(membership.Member{ID: 0x5f, PeerURLs: []string{"http://l:1"}})
	must(t, err)
	d.changes = map[ids.Index]*raftpb.ConfChange{10: add, 11: membership.RemoveChange(other), 22: late}
	d.make(t, l)
}

// etcd 3.5 uses the v2 store; releases before 3.5.26 could let the copy of the membership
// in the database fall behind.
func TestMembershipOf35(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	stale35(t, l)
	must(t, takeOver(l))
	eng, err := OpenStore(l, opt.withDefaults().Logger)
	must(t, err)
	defer eng.Close()
	c := membership.New(membership.Options{ServerVersion: own, Aside: true})
	must(t, c.Load(eng))
	if got, want := c.MemberIDs(), []ids.Member{memberID, third}; !slices.Equal(got, want) {
		t.Errorf("members %s, want %s", got, want)
	}
	if !c.IsRemoved(other) {
		t.Errorf("member %x is not marked as removed", uint64(other))
	}
	if m, _ := c.Member(memberID); m.Name != "m" || len(m.ClientURLs) != 1 {
		t.Errorf("own member %+v", m)
	}
}
