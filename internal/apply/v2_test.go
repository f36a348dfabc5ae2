package apply

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// replica is a state machine that applies given entries.
type replica struct {
	t   testing.TB
	eng engine.Engine
	m   *Machine
}

func newReplica(t testing.TB) *replica {
	r := &replica{t: t, eng: mem.New()}
	t.Cleanup(func() { r.m.Close(); r.eng.Close() })
	r.open()
	return r
}

func (r *replica) open() {
	r.t.Helper()
	var err error
	r.m, err = Open(r.eng, Options{Cluster: membership.New(membership.Options{ServerVersion: membership.Version{Major: 3, Minor: 7}, Aside: true}),
		Lessor: lease.New(1, lease.Options{}), MVCC: mvcc.Options{Manual: true}, Now: func() time.Time { return epoch }, Logger: zap.NewNop()})
	if err != nil {
		r.t.Fatal(err)
	}
}

// reopen simulates a restart.
func (r *replica) reopen() {
	r.m.Close()
	r.open()
}

// forget turns the state into one of etcd 3.7, which has no v2 tree.
func (r *replica) forget() {
	b := r.eng.NewBatch()
	b.DeleteRange(engine.V2.Bounds())
	if err := b.Commit(); err != nil {
		r.t.Fatal(err)
	}
	r.reopen()
}

func (r *replica) apply(entries ...*raftpb.Entry) (Outcome, error) {
	var ents []Entry
	for i, e := range entries {
		e = proto.Clone(e).(*raftpb.Entry)
		e.Index, e.Term = new(uint64(r.m.Applied()+ids.Index(i)+1)), new(uint64(1))
		ents = append(ents, Entry{Entry: e, Local: true})
	}
	return r.m.Apply(ents)
}

func (r *replica) must(entries ...*raftpb.Entry) Outcome {
	r.t.Helper()
	out, err := r.apply(entries...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *replica) records() []string {
	r.t.Helper()
	out, err := enginetest.Records(r.eng, engine.V2)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func normal(data []byte) *raftpb.Entry { return &raftpb.Entry{Data: data} }

func v2Entry(r v2request.Request) *raftpb.Entry { return normal(r.Marshal()) }

func put(key, value string) *raftpb.Entry {
	return v2Entry(v2request.Request{ID: 9, Method: "PUT", Path: "/1/" + key, Val: value, Time: epoch.UnixNano()})
}

func change(t testing.TB, cc *raftpb.ConfChange, err error) *raftpb.Entry {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(cc)
	if err != nil {
		t.Fatal(err)
	}
	return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
}

func added(t testing.TB, id ids.Member) *raftpb.Entry {
	cc, err := membership.AddChange(membership.Member{ID: id, PeerURLs: []string{fmt.Sprintf("http://m%d:2380", id)}})
	return change(t, cc, err)
}

func today(t testing.TB, r *pb.InternalRaftRequest) *raftpb.Entry {
	t.Helper()
	r.Header = &pb.RequestHeader{ID: 5}
	data, err := command.EncodeRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	return normal(data)
}

func named(t testing.TB, id uint64) *raftpb.Entry {
	return today(t, &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: id,
		MemberAttributes: &membershippb.Attributes{Name: fmt.Sprint(id), ClientUrls: []string{"http://c"}}}})
}

func version(t testing.TB, v string) *raftpb.Entry {
	return today(t, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v}})
}

// named35 is the entry in which a member of 3.5 publishes its name.
func named35(id uint64) *raftpb.Entry {
	return v2Entry(v2request.Request{ID: 8, Method: "PUT", Path: fmt.Sprintf("/0/members/%x/attributes", id), Val: `{"name":"m","clientURLs":["http://c"]}`})
}

// The index counts membership changes, as in etcd 3.5.
func TestV2Index(t *testing.T) {
	r := newReplica(t)
	for i, c := range []struct {
		what  string
		entry *raftpb.Entry
		want  uint64
	}{
		{"a member", added(t, 1), 1}, {"another", added(t, 2), 2}, {"the same again", added(t, 2), 2},
		{"its name", named35(1), 3}, {"the version", version(t, "3.5.0"), 4}, {"the name of nobody", named(t, 77), 4},
		{"its name again", named(t, 1), 5}, {"a key", put("a", "x"), 6}, {"a removal", change(t, membership.RemoveChange(2), nil), 8},
		{"the name of a removed one", named(t, 2), 8}, {"a refusal", v2Entry(v2request.Request{ID: 3, Method: "DELETE", Path: "/1/none"}), 8},
		{"a read", v2Entry(v2request.Request{ID: 3, Method: "QGET", Path: "/1/a"}), 8}, {"the next version", version(t, "3.6.0"), 9},
	} {
		r.must(c.entry)
		if got := r.m.V2().Index(); got != c.want {
			t.Fatalf("%d, %s: the index is %d, want %d", i, c.what, got, c.want)
		}
		records := r.records()
		if r.reopen(); r.m.V2().Index() != c.want || !slices.Equal(r.records(), records) {
			t.Fatalf("%d, %s: after a restart %d", i, c.what, r.m.V2().Index())
		}
	}
}

// Members that have reached a state of 3.6 or later in different ways begin at the same
// index with the same, empty tree.
func TestV2Begin(t *testing.T) {
	var history []*raftpb.Entry
	for _, e := range [][]*raftpb.Entry{{added(t, 1), added(t, 2), named(t, 1), named(t, 1), version(t, "3.5.0")}, {named(t, 2), named(t, 2), version(t, "3.6.0")},
		{named(t, 1), added(t, 3)}, {change(t, membership.RemoveChange(3), nil), version(t, "3.7.0")}, {named(t, 1)}} {
		history = append(history, e...)
	}
	straight := newReplica(t)
	straight.must(history...)
	if got := straight.m.V2().Index(); got != 9 { // two members, their names, a removed member, the version
		t.Errorf("the index is %d, want 9", got)
	}
	if got := straight.records(); len(got) > 0 {
		t.Errorf("there are records: %q", got)
	}
	replicas := []*replica{straight}
	for at := 8; at <= len(history); at++ { // the version is 3.6 from then on
		r := newReplica(t)
		r.must(history[:at]...)
		r.forget()
		r.must(history[at:]...)
		replicas = append(replicas, r)
	}
	for _, r := range replicas {
		if e, err := r.m.V2().Get("/1/none", false, false); err == nil || err.(*v2store.Error).Index != 9 {
			t.Errorf("a read: %+v, %v", e, err)
		}
		r.must(put("a", "x"), named(t, 2), put("b", "y"))
		if got := r.m.V2().Index(); got != 12 || !slices.Equal(r.records(), straight.records()) {
			t.Errorf("the index is %d, want 12; records %q, want %q", got, r.records(), straight.records())
		}
	}
}

// An entry has the same effect bare, inside a request of etcd 3.5, and carried through members of later
// releases.
func TestV2Forms(t *testing.T) {
	var want []string
	for i, form := range []func([]byte) []byte{func(b []byte) []byte { return b }, v2request.Modern, func(b []byte) []byte {
		return append([]byte{0x12, byte(len(b))}, b...)
	}} {
		r := newReplica(t)
		r.must(added(t, 1), version(t, "3.7.0"))
		for _, e := range []*raftpb.Entry{put("a", "x"), v2Entry(v2request.Request{ID: 1, Method: "PUT", Path: "/1/b", Expiration: epoch.Add(time.Hour).UnixNano()}),
			v2Entry(v2request.Request{ID: 2, Method: "SYNC", Time: epoch.Add(2 * time.Hour).UnixNano()})} {
			r.must(normal(form(e.Data)))
		}
		if got := r.records(); i == 0 {
			want = got
		} else if !slices.Equal(got, want) {
			t.Errorf("form %d: %q, want %q", i, got, want)
		}
		if r.m.V2().HasTTL() {
			t.Errorf("form %d: the sweep was passed over", i)
		}
	}
}

// The proposer of a request gets its result.
func TestV2Results(t *testing.T) {
	r := newReplica(t)
	r.must(added(t, 1), version(t, "3.7.0"))
	out := r.must(put("a", "x"), v2Entry(v2request.Request{ID: 7, Method: "POST", Path: "/1/a"}))
	if len(out.Results) != 2 || out.Results[0].ID != 9 || out.Results[1].ID != 7 {
		t.Fatalf("results %+v", out.Results)
	}
	if ev, ok := out.Results[0].Resp.(*v2store.Event); !ok || ev.Node.Key != "/1/a" || out.Results[0].Err != nil {
		t.Errorf("got %+v", out.Results[0])
	}
	var refused *v2store.Error
	if !errors.As(out.Results[1].Err, &refused) || refused.Code != v2store.CodeNotDir || out.Results[1].Resp != nil {
		t.Errorf("got %+v", out.Results[1])
	}
}

// FuzzV2Entry looks for entries that panic, or on which two members disagree.
func FuzzV2Entry(f *testing.F) {
	for _, e := range []*raftpb.Entry{put("a", "x"), put("a/b", "x"), named35(1), v2Entry(v2request.Request{ID: 1, Method: "SYNC", Time: 1 << 62}),
		v2Entry(v2request.Request{Method: "POST", Path: "/1/../0/members", Val: "v"}), v2Entry(v2request.Request{ID: 1, Method: "PUT", Path: "/0/version", Val: "x"}),
		v2Entry(v2request.Request{ID: 1, Method: "DELETE", Path: "/", Recursive: true}), v2Entry(v2request.Request{Method: "GET"}),
		v2Entry(v2request.Request{ID: 1, Method: "PUT", Path: "/1/a", PrevExist: new(true), Refresh: new(true), Expiration: -1})} {
		f.Add(e.Data)
		f.Add(v2request.Modern(e.Data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var want string
		for i := range 2 {
			r := newReplica(t)
			r.must(added(t, 1), version(t, "3.7.0"), put("a", "x"))
			if i == 1 {
				r.reopen()
			}
			out, err := r.apply(normal(data))
			got := fmt.Sprint(r.records(), err)
			for _, res := range out.Results {
				got += fmt.Sprint(res.ID, res.Err)
			}
			if i == 0 {
				want = got
			} else if got != want {
				t.Fatalf("%q, after a restart %q", want, got)
			}
			r.reopen()
		}
	})
}
