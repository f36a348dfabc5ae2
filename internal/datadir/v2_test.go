package datadir

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// v2Keys is the data of a .snap file of etcd 3.5: the membership, and what clients have
// written with the v2 API.
const v2Keys = `{"Root":{"Path":"/","Children":{
	"0":{"Path":"/0","Children":{
		"members":{"Path":"/0/members","Children":{"1f":{"Path":"/0/members/1f","Children":{
			"raftAttributes":{"Path":"/0/members/1f/raftAttributes","CreatedIndex":1,"ModifiedIndex":1,"Value":"{\"peerURLs\":[\"http://a:1\"]}"},
			"attributes":{"Path":"/0/members/1f/attributes","CreatedIndex":2,"ModifiedIndex":2,"Value":"{\"name\":\"m\",\"clientURLs\":[\"http://a:2\"]}"}}}}},
		"version":{"Path":"/0/version","CreatedIndex":3,"ModifiedIndex":3,"Value":"3.5.0"}}},
	"1":{"Path":"/1","Children":{"message":{"Path":"/1/message","CreatedIndex":4,"ModifiedIndex":4,"Value":"hi"}}}}},
	"CurrentIndex":4,"CurrentVersion":2}`

func v2Request(r v2request.Request) []byte { return r.Marshal() }

func openV2(t *testing.T, l Layout) (*v2store.Store, []string) {
	t.Helper()
	eng, err := ReadStore(l, opt.withDefaults().Logger)
	must(t, err)
	defer eng.Close()
	s, err := v2store.Load(eng, v2store.Options{Now: time.Now})
	must(t, err)
	records, err := enginetest.Records(eng, engine.V2)
	must(t, err)
	return s, records
}

func v2Value(s *v2store.Store, key string) string {
	e, err := s.Get("/1/"+key, false, false)
	if err != nil {
		return "none"
	}
	return fmt.Sprintf("%s at %d", *e.Node.Value, e.Node.ModifiedIndex)
}

// v2Directory is one of etcd 3.5 with keys of the v2 API, in the .snap file and in the
// log: an entry that another leader replaced, some that are valid, and some that etcd has
// not applied to its database.
func v2Directory(t *testing.T, l Layout) {
	d := plain
	d.storageVersion, d.clusterVersion, d.snap = "", "3.5.0", []byte(v2Keys)
	add, err := membership.AddChange(membership.Member{ID: 0x3f, PeerURLs: []string{"http://t:1"}})
	must(t, err)
	d.changes = map[ids.Index]*raftpb.ConfChange{10: add, 17: membership.RemoveChange(0x3f)} // 3 steps
	d.requests = map[ids.Index][]byte{
		2:  v2Request(v2request.Request{ID: 1, Method: "PUT", Path: "/1/message", Val: "older than the file"}),
		9:  v2Request(v2request.Request{ID: 2, Method: "PUT", Path: "/1/dir/a", Val: "one"}),
		11: v2Request(v2request.Request{ID: 3, Method: "PUT", Path: "/1/message", Val: "x", PrevIndex: 99}),
		12: v2Request(v2request.Request{ID: 4, Method: "PUT", Path: "/1/brief", Val: "x", Expiration: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(),
			Time: time.Date(2029, 12, 31, 0, 0, 0, 0, time.UTC).UnixNano()}),
		13: v2Request(v2request.Request{ID: 5, Method: "PUT", Path: "/1/dir/b", Val: "two"}),
		18: v2Request(v2request.Request{ID: 6, Method: "SYNC", Time: time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC).UnixNano()}),
		20: v2Request(v2request.Request{ID: 7, Method: "DELETE", Path: "/1/dir/b"}),
		22: v2Request(v2request.Request{ID: 8, Method: "PUT", Path: "/1/message", Val: "not applied"}),
	}
	d.make(t, l)
}

func TestV2Takeover(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	v2Directory(t, l)
	must(t, takeOver(l))
	s, records := openV2(t, l)
	// 4 in the file, /dir/a, an addition, /brief, /dir/b, a removal that counts twice, the expiry, the deletion.
	if got := s.Index(); got != 12 || !s.Written() {
		t.Errorf("the index is %d, want 12; written %v", got, s.Written())
	}
	for key, want := range map[string]string{"message": "hi at 4", "dir/a": "one at 5", "brief": "none", "dir/b": "none"} {
		if got := v2Value(s, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	w, err := s.Watch("/1", true, false, 5)
	must(t, err)
	if e := <-w.Events(); e.Node.Key != "/1/dir/a" {
		t.Errorf("the history begins with %+v", e)
	}

	if _, err := Leave(ctx, l, membership.Version{Major: 3, Minor: 6}, opt); err == nil || !strings.Contains(err.Error(), "/dir") || !strings.Contains(err.Error(), "--drop-v2") {
		t.Errorf("to etcd 3.6: %v", err)
	}
	_, err = Leave(ctx, l, membership.Version{Major: 3, Minor: 5}, opt)
	must(t, err)
	snap, err := snapshot.LoadSnap(l.FS.PathJoin(l.Snap(), snapshot.SnapName(2, 20)), snapshot.Options{FS: l.FS})
	must(t, err)
	if key, err := clientKey(snap.Data); err != nil || key != "/1/dir" {
		t.Errorf("etcd 3.5 gets %q, %v", key, err)
	}
	must(t, takeOver(l))
	if again, now := openV2(t, l); again.Index() != 12 || !slices.Equal(now, records) {
		t.Errorf("after there and back at %d: %q, was %q", again.Index(), now, records)
	}
}

// An entry that another leader has replaced was never applied.
func TestV2Replaced(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	d := plain
	d.storageVersion, d.clusterVersion, d.snap = "", "3.5.0", []byte(v2Keys)
	put := func(value string) []byte {
		return v2Request(v2request.Request{ID: 9, Method: "PUT", Path: "/1/message", Val: value})
	}
	d.last = 22
	d.make(t, l)
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{NoBackground: true})
	must(t, err)
	entries := func(term ids.Term, data ...[]byte) (ents []*raftpb.Entry) {
		for i, b := range data {
			ents = append(ents, &raftpb.Entry{Term: new(uint64(term)), Index: new(uint64(23 + i)), Data: b})
		}
		return ents
	}
	must(t, log.Append(nil, entries(2, put("replaced"), put("replaced as well")), true))
	must(t, log.Append(&raftpb.HardState{Term: new(uint64(5)), Vote: new(uint64(memberID)), Commit: new(uint64(25))}, entries(5, nil, put("what counts"), nil), true))
	must(t, log.Close())
	e := &etcds{}
	e.log, err = raftlog.Inspect(l.FS, l.WAL(), e.collect)
	must(t, err)
	for index, want := range map[ids.Index]ids.Term{1: 2, 22: 2, 23: 5, 25: 5} {
		if got := e.term(index); got != want {
			t.Errorf("the entry that counts at %d is of term %d, want %d", index, got, want)
		}
	}
	d.applied, d.last = 25, 25
	must(t, l.FS.Remove(l.DB()))
	other := Layout{FS: l.FS, DataDir: "other"}
	d.make(t, other) // for its database, which has applied that much
	must(t, l.FS.Rename(other.DB(), l.DB()))
	e.meta, err = snapshot.PeekMeta(ctx, l.DB(), snapshot.Options{FS: l.FS})
	must(t, err)
	must(t, e.readSnap(l, opt.withDefaults().Logger))
	eng, err := openScratch(t, e, l)
	must(t, err)
	if got := v2Value(eng, "message"); got != "what counts at 5" {
		t.Errorf("the key is %q", got)
	}
}

func openScratch(t *testing.T, e *etcds, l Layout) (*v2store.Store, error) {
	eng := newMem(t)
	if err := e.fillV2(ctx, l, eng, opt, opt.withDefaults().Logger); err != nil {
		return nil, err
	}
	return v2store.Load(eng, v2store.Options{Now: time.Now})
}

// Without the data, etcd 3.6 can take the directory.
func TestV2Dropped(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	v2Directory(t, l)
	must(t, takeOver(l))
	o := opt
	o.DropV2 = true
	if _, err := Leave(ctx, l, membership.Version{Major: 3, Minor: 6}, o); err == nil || !strings.Contains(err.Error(), "entry 22") {
		t.Errorf("with a write in the log that nobody has applied: %v", err)
	}
	d := plain
	d.storageVersion, d.clusterVersion, d.snap = "", "3.5.0", []byte(v2Keys)
	l = Layout{FS: vfs.NewMem(), DataDir: "data"}
	d.make(t, l)
	must(t, takeOver(l))
	_, err := Leave(ctx, l, membership.Version{Major: 3, Minor: 6}, o)
	must(t, err)
	snap, err := snapshot.LoadSnap(l.FS.PathJoin(l.Snap(), snapshot.SnapName(2, 20)), snapshot.Options{FS: l.FS})
	must(t, err)
	if key, err := clientKey(snap.Data); err != nil || key != "" {
		t.Errorf("etcd 3.6 gets %q, %v", key, err)
	}
}

func newMem(t *testing.T) engine.Engine {
	eng := mem.New()
	t.Cleanup(func() { eng.Close() })
	return eng
}

// clientKey returns the first key that clients wrote in a dump of the v2 store.
func clientKey(dump []byte) (string, error) {
	d, err := v2store.ParseDump(dump)
	if err != nil {
		return "", err
	}
	return d.ClientKey(), nil
}
