package apply

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/legacy/v2request"
)

// author writes random entries: what a client, a member of any release, or an attacker
// with a member's certificate could put into the log. It uses few names and numbers, so
// that requests affect each other.
type author struct{ *rand.Rand }

func (a author) pick(s ...string) string { return s[a.IntN(len(s))] }

func (a author) number() int64 {
	if a.IntN(12) == 0 {
		return []int64{math.MaxInt64, math.MinInt64, math.MaxInt32, -77}[a.IntN(4)]
	}
	return a.Int64N(7) - 1
}

// fill sets random fields of a message, recursively up to a depth.
func (a author) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if a.IntN(5) < 2 {
			continue
		}
		a.set(m, f, depth)
	}
}

func (a author) set(m protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	switch {
	case f.IsMap():
	case f.IsList():
		l := m.Mutable(f).List()
		for range a.IntN(4) {
			if f.Kind() == protoreflect.MessageKind {
				if depth > 0 {
					v := l.NewElement()
					a.fill(v.Message(), depth-1)
					l.Append(v)
				}
			} else {
				l.Append(a.scalar(f))
			}
		}
	case f.Kind() == protoreflect.MessageKind:
		if depth > 0 {
			a.fill(m.Mutable(f).Message(), depth-1)
		}
	default:
		m.Set(f, a.scalar(f))
	}
}

func (a author) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(a.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(a.IntN(6) - 1))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(a.number()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(a.number())
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(a.number()))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(a.number()))
	case protoreflect.StringKind:
		if f.Name() == "ver" {
			return protoreflect.ValueOfString(a.pick("3.5.0", "3.6.0", "3.7.0", "3.8.0", "99.1.2", "0.0.0", "x", ""))
		}
		return protoreflect.ValueOfString(a.pick("root", "root", "u", "v", "r", "s", "", "dGVzdA==", "$2a$", "\x00"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(a.pick("a", "b", "b", "c", "d", "", "\x00", "z", "a\x00")))
	}
	panic(f.Kind())
}

// request returns a request in the current format.
func (a author) request() *pb.InternalRaftRequest {
	r := &pb.InternalRaftRequest{}
	m := r.ProtoReflect()
	fields := m.Descriptor().Fields()
	for n := 1; n > 0; n-- {
		for {
			f := fields.Get(a.IntN(fields.Len()))
			if f.Kind() == protoreflect.MessageKind && f.Name() != "header" {
				a.fill(m.Mutable(f).Message(), 4)
				break
			}
		}
		if a.IntN(20) == 0 {
			n++ // more than one: no member proposes that
		}
	}
	switch a.IntN(12) {
	case 0:
	case 1:
		r.ID = uint64(a.IntN(3))
	case 2, 3, 4:
		r.Header = &pb.RequestHeader{ID: 1 + a.Uint64N(1000), Username: a.pick("root", "u", "v", ""), AuthRevision: a.Uint64N(20)}
	default:
		r.Header = &pb.RequestHeader{ID: 1 + a.Uint64N(1000), Username: "root", AuthRevision: math.MaxUint64}
	}
	return r
}

// usual writes entries that create a state in which errors would show.
func (a author) usual() *pb.InternalRaftRequest {
	r := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1 + a.Uint64N(1000), Username: "root", AuthRevision: math.MaxUint64}}
	key := func() []byte { return []byte(a.pick("a", "b", "c", "d")) }
	op := func() *pb.RequestOp {
		switch a.IntN(5) {
		case 0:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key(), RangeEnd: []byte(a.pick("", "c", "\x00")), PrevKv: a.IntN(2) == 0}}}
		case 1:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key(), RangeEnd: []byte(a.pick("", "z")), Revision: a.number()}}}
		case 2:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), IgnoreLease: true, Value: key(), PrevKv: a.IntN(2) == 0}}}
		case 3:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), IgnoreValue: true, Lease: int64(a.IntN(3))}}}
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), Value: key()}}}
	}
	ops := func() (out []*pb.RequestOp) {
		for range a.IntN(5) {
			out = append(out, op())
		}
		if a.IntN(4) == 0 {
			out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{op(), op()}}}}, op())
		}
		return out
	}
	switch a.IntN(8) {
	case 0:
		r.LeaseGrant = &pb.LeaseGrantRequest{ID: int64(1 + a.IntN(3)), TTL: 60}
	case 1:
		r.LeaseRevoke = &pb.LeaseRevokeRequest{ID: int64(1 + a.IntN(3))}
	case 2:
		r.AuthUserAdd = &pb.AuthUserAddRequest{Name: a.pick("root", "u"), HashedPassword: "dGVzdA=="}
	case 3:
		r.AuthUserGrantRole = &pb.AuthUserGrantRoleRequest{User: a.pick("root", "u"), Role: a.pick("root", "r")}
	case 4, 5:
		r.Put = &pb.PutRequest{Key: key(), Value: key(), Lease: int64(a.IntN(4))}
	default:
		r.Txn = &pb.TxnRequest{Success: ops(), Failure: ops()}
	}
	return r
}

// entry writes one entry, and returns it with its request as the proposing member has
// it.
func (a author) entry(t testing.TB) Entry {
	e := &raftpb.Entry{Type: raftpb.EntryNormal.Enum()}
	x := Entry{Entry: e}
	var err error
	switch n := a.IntN(40); {
	case n < 14:
		x.Req = a.usual()
		e.Data, err = command.EncodeRequest(x.Req)
	case n < 28:
		x.Req = a.request()
		e.Data, err = command.EncodeRequest(x.Req)
	case n < 31:
		r := v2request.Request{ID: 9, Method: a.pick("PUT", "POST", "DELETE", "SYNC", "QGET", "GET", "X"), Path: a.pick("/1/a", "/1/a/b", "/", "/0/version", "/0/members/1/attributes", "/1/../0"),
			Val: a.pick("x", "", "3.7.0", `{"name":"m"}`, "{"), Recursive: a.IntN(2) == 0, Dir: a.IntN(4) == 0, PrevIndex: a.Uint64N(3), Time: epoch.UnixNano(), Expiration: a.number()}
		e.Data = r.Marshal()
		if a.IntN(2) == 0 {
			e.Data = v2request.Modern(e.Data)
		}
	case n < 35:
		cc := &raftpb.ConfChange{}
		a.fill(cc.ProtoReflect(), 1)
		cc.NodeId = new(a.Uint64N(5))
		if a.IntN(3) > 0 {
			cc.Context = fmt.Appendf(nil, `{"id":%d,"peerURLs":[%q],"isLearner":%v,"isPromote":%v}`, cc.GetNodeId(), a.pick("http://a:1", "http://b:1", "", "::"), a.IntN(2) == 0, a.IntN(3) == 0)
		}
		e.Type = raftpb.EntryConfChange.Enum()
		e.Data, err = proto.Marshal(cc)
	case n < 36:
		cc := &raftpb.ConfChangeV2{}
		a.fill(cc.ProtoReflect(), 2)
		e.Type = raftpb.EntryConfChangeV2.Enum()
		e.Data, err = proto.Marshal(cc)
	case n < 37:
		e.Type = new(raftpb.EntryType(a.IntN(9) - 2))
	}
	if err != nil {
		t.Fatal(err)
	}
	if a.IntN(12) == 0 && len(e.Data) > 0 { // corrupted when it was written
		x.Req = nil
		for range 1 + a.IntN(3) {
			e.Data[a.IntN(len(e.Data))] = byte(a.IntN(256))
		}
		e.Data = e.Data[:a.IntN(len(e.Data)+1)]
	}
	// As when it was proposed: decoded by the gRPC server, not built by hand.
	if x.Req != nil {
		x.Req = proto.Clone(x.Req).(*pb.InternalRaftRequest)
	}
	return x
}

// dump returns all state that must be equal on all members.
func (r *replica) dump() string {
	for r.m.KV().Step() {
	}
	var s strings.Builder
	it, err := r.eng.NewIter(nil, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			r.t.Fatal(err)
		}
		if engine.Bucket(it.Key()[0]) == engine.Local || bytes.Contains(it.Key(), []byte("CompactRev")) {
			continue // the time of background work may differ between members
		}
		if engine.Bucket(it.Key()[0]) == engine.V2 && it.Key()[1] == 'h' {
			continue // only watches use it, no decision; it is set at the first write or restart
		}
		fmt.Fprintf(&s, "%v %q=%q\n", engine.Bucket(it.Key()[0]), it.Key()[1:], v)
	}
	// State in memory, which a restart rebuilds.
	for _, l := range r.m.keys.lessor.List() {
		fmt.Fprintf(&s, "lease %d %d %q\n", l.ID, l.TTL, r.m.keys.lessor.Keys(l.ID))
	}
	st := r.m.users.auth.Next()
	fmt.Fprintf(&s, "auth %v %d %q %q\n", st.Enabled(), st.Revision(), st.Users(), st.Roles())
	c := r.m.opts.Cluster
	fmt.Fprintf(&s, "cluster %v %v %v %v\n", c.Members(), c.RemovedIDs(), c.Version(), c.Downgrade())
	fmt.Fprintf(&s, "revision %d %d, alarms %v, v2 %d\n", r.m.KV().Rev(), r.m.KV().CompactRev(), r.m.Alarms(), r.m.V2().Index())
	return s.String()
}

// twins applies the same entries on two machines: one applies them one by one as the
// proposing member, the other as bytes, in batches, with restarts in between.
func twins(t testing.TB, seed uint64, raw []byte, entries int) {
	a := author{rand.New(rand.NewPCG(seed, 1))}
	one, other := newReplica(t), newReplica(t)
	begin := []*raftpb.Entry{added(t, 1), added(t, 2), version(t, a.pick("3.5.0", "3.6.0", "3.7.0"))}
	one.must(begin...)
	other.must(begin...)
	index := one.m.Applied()
	var batch, shown []Entry
	for i := range entries {
		e := a.entry(t)
		if i == entries/2 && raw != nil {
			e = Entry{Entry: &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: raw}}
		}
		index++
		e.Index, e.Term = (*uint64)(&index), new(uint64(1))
		e.Index = new(uint64(index))
		shown = append(shown, e)
		batch = append(batch, Entry{Entry: proto.Clone(e.Entry).(*raftpb.Entry)})
		e.Local = true
		if _, err := one.m.Apply([]Entry{e}); err != nil {
			t.Fatalf("seed %d: entry %d ends the member: %v\n%v %v", seed, i, err, e.Req, e.Entry)
		}
		if a.IntN(4) > 0 && i < entries-1 {
			continue
		}
		if _, err := other.m.Apply(batch); err != nil {
			t.Fatalf("seed %d: entry %d ends the member: %v", seed, i, err)
		}
		last := shown[len(shown)-len(batch):]
		batch = nil
		if a.IntN(3) == 0 {
			other.reopen()
		}
		if x, y := one.dump(), other.dump(); x != y {
			t.Fatalf("seed %d: after entry %d two members differ:\n%s\n%s\nlast entries: %v", seed, i, x, y, last)
		}
	}
}

// No entry stops a member, and all members agree on the result.
func TestRandomEntries(t *testing.T) {
	for seed := range uint64(300) {
		twins(t, seed, nil, 60)
		if t.Failed() {
			return
		}
	}
}

func FuzzEntries(f *testing.F) {
	f.Add(uint64(1), []byte("\x22\x03\x0a\x01a"))
	f.Add(uint64(2), []byte{})
	f.Fuzz(func(t *testing.T, seed uint64, raw []byte) { twins(t, seed, raw, 40) })
}

// A transaction that fails while it runs changes nothing.
func TestRefusedInTheMiddle(t *testing.T) {
	kv := func(op *pb.PutRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: op}}
	}
	del := func(key, end string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
	}
	keep := &pb.PutRequest{Key: []byte("k"), Value: []byte("w"), IgnoreLease: true}
	for _, c := range []struct {
		what    string
		ops     []*pb.RequestOp
		refused bool
	}{
		{"with an open end", []*pb.RequestOp{kv(&pb.PutRequest{Key: []byte("j"), Value: []byte("j")}), del("a", "\x00"), kv(keep)}, true},
		{"the value", []*pb.RequestOp{del("k", ""), kv(&pb.PutRequest{Key: []byte("k"), IgnoreValue: true})}, true},
		{"another key", []*pb.RequestOp{del("l", "z"), kv(keep)}, false},
		{"there again", []*pb.RequestOp{del("a", "z"), kv(&pb.PutRequest{Key: []byte("k"), Value: []byte("v")}), kv(keep)}, false},
		{"within", []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{del("a", "z")}}}}, kv(keep)}, true},
		{"afterwards", []*pb.RequestOp{kv(keep), del("a", "z")}, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			r := newReplica(t)
			r.must(today(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}))
			before := strings.SplitN(r.dump(), "meta", 2)[0]
			// Another entry of the same batch does not see its effects either.
			out := r.must(today(t, &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: c.ops}}), today(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), PrevKv: true}}))
			err := out.Results[0].Err
			if (err != nil) != c.refused {
				t.Fatalf("%v", err)
			}
			if !c.refused {
				return
			}
			prev := out.Results[1].Resp.(*pb.PutResponse).PrevKv
			if !errors.Is(err, rpctypes.ErrGRPCKeyNotFound) || r.m.KV().Rev() != 3 || string(prev.GetValue()) != "v" || len(out.Changes) != 1 {
				t.Errorf("%v, revision %d, %d changes, before it %v", err, r.m.KV().Rev(), len(out.Changes), prev)
			}
			if got := strings.SplitN(r.dump(), "meta", 2)[0]; !strings.HasPrefix(got, before) {
				t.Errorf("before\n%s\nafter\n%s", before, got)
			}
		})
	}
}

// A key whose lease does not exist, as in some data directories of etcd, can be put
// again.
func TestPutKeepsLostLease(t *testing.T) {
	r := newReplica(t)
	r.must(today(t, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 60}}), today(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Lease: 7}}))
	b := r.eng.NewBatch()
	b.DeleteRange(engine.Lease.Bounds())
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	out := r.must(today(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), IgnoreLease: true}}))
	if out.Results[0].Err != nil || out.Changes[0].Lease != 7 {
		t.Errorf("%+v", out)
	}
}

func TestUnknownAlarmAction(t *testing.T) {
	r := newReplica(t)
	out := r.must(today(t, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: 7, MemberID: 1, Alarm: pb.AlarmType_NOSPACE}}))
	if out.Results[0].Err != ErrAlarmAction || out.Results[0].Resp != nil || len(r.m.Alarms()) > 0 {
		t.Errorf("%+v, alarms %v", out.Results[0], r.m.Alarms())
	}
}
