package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/legacy/v2store"
)

var testMembers = []Member{
	{ID: 1, PeerURLs: []string{"http://10.0.0.1:2380"}, IsLearner: true},
	{ID: 0xabcdef0123456789, Name: "m1", PeerURLs: []string{"http://10.0.0.2:2380", "http://10.0.1.2:2380"}, ClientURLs: []string{"http://10.0.0.2:2379"}},
}

func TestV2Store(t *testing.T) {
	got := string(membershipDump(testMembers, []ids.Member{0x77}, "3.6.0"))
	want := `{"Root":{"Path":"/","Children":{` +
		`"0":{"Path":"/0","Children":{` +
		`"members":{"Path":"/0/members","Children":{` +
		`"1":{"Path":"/0/members/1","Children":{"raftAttributes":{"Path":"/0/members/1/raftAttributes","Value":"{\"peerURLs\":[\"http://10.0.0.1:2380\"],\"isLearner\":true}"}}},` +
		`"abcdef0123456789":{"Path":"/0/members/abcdef0123456789","Children":{` +
		`"attributes":{"Path":"/0/members/abcdef0123456789/attributes","Value":"{\"name\":\"m1\",\"clientURLs\":[\"http://10.0.0.2:2379\"]}"},` +
		`"raftAttributes":{"Path":"/0/members/abcdef0123456789/raftAttributes","Value":"{\"peerURLs\":[\"http://10.0.0.2:2380\",\"http://10.0.1.2:2380\"]}"}}}}},` +
		`"removed_members":{"Path":"/0/removed_members","Children":{"77":{"Path":"/0/removed_members/77"}}},` +
		`"version":{"Path":"/0/version","Value":"3.6.0"}}},` +
		`"1":{"Path":"/1","Children":{}}}},"CurrentIndex":1,"CurrentVersion":2}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	checkV2(t, []byte(got), "3.6.0")
	if got, want := string(membershipDump(nil, nil, "")), `{"Root":{"Path":"/","Children":{"0":{"Path":"/0","Children":{}},"1":{"Path":"/1","Children":{}}}},"CurrentIndex":1,"CurrentVersion":2}`; got != want {
		t.Errorf("nothing: got  %s\nwant %s", got, want)
	}
}

func checkV2(t *testing.T, data []byte, wantVersion string) {
	t.Helper()
	members, removed, version, err := ParseV2Store(data)
	must(t, err)
	if !reflect.DeepEqual(members, testMembers) {
		t.Errorf("members: got %+v, want %+v", members, testMembers)
	}
	if len(removed) != 1 || removed[0] != 0x77 || version != wantVersion {
		t.Errorf("removed %v, version %q; want [119], %q", removed, version, wantVersion)
	}
}

func TestParseV2StoreRefuses(t *testing.T) {
	for _, s := range []string{"", "null", "{}", "[]", `{"Root":null}`,
		`{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"zz":{}}}}}}}}`,
		`{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"1":{}}}}}}}}`,
		`{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"1":null}}}}}}}`,
		`{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"1":{"Children":{"raftAttributes":{"Value":"x"}}}}}}}}}}`,
		`{"Root":{"Children":{"0":{"Children":{"removed_members":{"Children":{"-1":{}}}}}}}}`} {
		if _, _, _, err := ParseV2Store([]byte(s)); !errors.Is(err, v2store.ErrDump) {
			t.Errorf("ParseV2Store(%s): %v, want ErrDump", s, err)
		}
	}
}

// TestEtcdSnap reads a file that etcd 3.5.33 wrote, with a full dump inside.
func TestEtcdSnap(t *testing.T) {
	s := newest(t, "testdata/etcd-3.5.33", Options{}, nil)
	m := s.GetMetadata()
	if m.GetIndex() != 0x1234 || m.GetTerm() != 5 || m.GetConfState().GetVoters()[0] != 0xabcdef0123456789 || m.GetConfState().GetLearners()[0] != 1 {
		t.Errorf("metadata %v", m)
	}
	checkV2(t, s.GetData(), "3.5.0")
}

// membershipDump is V2Store without a state of the engine, so it cannot fail.
func membershipDump(members []Member, removed []ids.Member, version string) []byte {
	b, err := V2Store(members, removed, version, nil)
	if err != nil {
		panic(err)
	}
	return b
}

func raftSnapshot(term ids.Term, index ids.Index) *raftpb.Snapshot {
	return &raftpb.Snapshot{
		Data: membershipDump(testMembers, []ids.Member{0x77}, "3.6.0"),
		Metadata: &raftpb.SnapshotMetadata{
			Index: new(uint64(index)), Term: new(uint64(term)),
			ConfState: &raftpb.ConfState{Voters: []uint64{0xabcdef0123456789}, Learners: []uint64{1}},
		},
	}
}

func TestSnapFiles(t *testing.T) {
	fs := vfs.NewCrashableMem()
	must(t, fs.MkdirAll("snap", 0o700))
	root, err := fs.OpenDir("/")
	must(t, err)
	must(t, root.Sync())
	must(t, root.Close())
	o := Options{FS: fs}
	if names, err := Snaps("snap", o); err != nil || len(names) > 0 {
		t.Fatalf("empty directory: %v, %v", names, err)
	}
	must(t, SaveSnap("snap", &raftpb.Snapshot{}, o))
	for _, ti := range [][2]uint64{{1, 500}, {3, 200}, {3, 100}, {2, 300}} {
		must(t, SaveSnap("snap", raftSnapshot(ids.Term(ti[0]), ids.Index(ti[1])), o))
	}
	put(t, fs, "snap/other", nil)
	check := func(fs vfs.FS, ok func(term ids.Term, index ids.Index) bool, term ids.Term, index ids.Index) {
		t.Helper()
		s := newest(t, "snap", Options{FS: fs}, ok)
		if want := raftSnapshot(term, index); !proto.Equal(s, want) {
			t.Errorf("got %v, want %v", s.GetMetadata(), want.GetMetadata())
		}
	}
	check(fs, nil, 3, 200)
	check(fs, func(_ ids.Term, index ids.Index) bool { return index >= 300 }, 2, 300)
	check(fs.CrashClone(vfs.CrashCloneCfg{}), nil, 3, 200)

	f, err := fs.OpenReadWrite("snap/"+SnapName(3, 200), category)
	must(t, err)
	_, err = f.WriteAt([]byte{0}, 100)
	must(t, err)
	must(t, f.Close())
	check(fs, nil, 3, 100)
	var ce *CorruptError
	if _, err := LoadSnap("snap/"+SnapName(3, 200), o); !errors.As(err, &ce) {
		t.Errorf("the damaged file: %v, want CorruptError", err)
	}
	names, err := Snaps("snap", o)
	must(t, err)
	if got, want := fmt.Sprint(names), fmt.Sprint([]string{SnapName(3, 200), SnapName(3, 100), SnapName(2, 300), SnapName(1, 500)}); got != want {
		t.Errorf("files %s, want %s", got, want)
	}
}

// newest reads the newest file in dir that is not damaged and whose term and index ok
// accepts; nil accepts all.
func newest(t *testing.T, dir string, o Options, ok func(term ids.Term, index ids.Index) bool) *raftpb.Snapshot {
	t.Helper()
	names, err := Snaps(dir, o)
	must(t, err)
	for _, name := range names {
		s, err := LoadSnap(o.withDefaults().FS.PathJoin(dir, name), o)
		var ce *CorruptError
		if errors.As(err, &ce) {
			continue
		}
		must(t, err)
		if ok == nil || ok(ids.Term(s.GetMetadata().GetTerm()), ids.Index(s.GetMetadata().GetIndex())) {
			return s
		}
	}
	t.Fatalf("no snapshot in %s among %v", dir, names)
	return nil
}

func TestSnapDamage(t *testing.T) {
	good, err := EncodeSnap(raftSnapshot(3, 200))
	must(t, err)
	for at := range good {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		if s, err := DecodeSnap(b); err == nil && !proto.Equal(s, raftSnapshot(3, 200)) {
			t.Fatalf("byte %d changed: %v", at, s)
		}
		if _, err := DecodeSnap(good[:at]); err == nil {
			t.Fatalf("cut to %d bytes: no error", at)
		}
	}
}

func FuzzDecodeSnap(f *testing.F) {
	good, err := EncodeSnap(raftSnapshot(3, 200))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("\x08\x01\x12\x01a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSnap(b); err == nil {
			_, _, _, _ = ParseV2Store(s.GetData())
		}
		_, _, _, _ = ParseV2Store(b)
	})
}

func TestNames(t *testing.T) {
	if got, want := SnapName(3, 0x1234), "0000000000000003-0000000000001234.snap"; got != want {
		t.Errorf("SnapName = %s, want %s", got, want)
	}
	if term, index, ok := ParseSnapName("0000000000000003-0000000000001234.snap"); !ok || term != 3 || index != 0x1234 {
		t.Errorf("ParseSnapName = %d, %d, %v", term, index, ok)
	}
	for _, n := range []string{"0000000000001234.snap.db", "3-1234.snap", "0000000000000003-0000000000001234.snap.broken", "000000000000000g-0000000000001234.snap"} {
		if _, _, ok := ParseSnapName(n); ok {
			t.Errorf("ParseSnapName(%q) accepts it", n)
		}
	}
	if got, want := DBName(0x1234), "0000000000001234.snap.db"; got != want {
		t.Errorf("DBName = %s, want %s", got, want)
	}
}
