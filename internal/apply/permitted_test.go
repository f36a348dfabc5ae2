package apply

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/auth"
	"quorate/internal/command"
	"quorate/internal/ids"
)

func txnOf(compare []*pb.Compare, success, failure []*pb.RequestOp) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Compare: compare, Success: success, Failure: failure}}
}

func putOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func getOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func delOp(key string, prev bool) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), PrevKv: prev}}}
}

// A user who may write keys from a to b, and read key r, proposes all kinds of
// entries, with the current auth revision and with an older one.
func TestEntriesOfAUser(t *testing.T) {
	r := newReplica(t)
	for _, q := range []*pb.InternalRaftRequest{
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", Options: &authpb.UserAddOptions{NoPassword: true}}},
		{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "root"}},
		{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", Options: &authpb.UserAddOptions{NoPassword: true}}},
		{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "w"}},
		{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "w", Perm: &authpb.Permission{PermType: authpb.Permission_WRITE, Key: []byte("a"), RangeEnd: []byte("b")}}},
		{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "w", Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("r")}}},
		{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "u", Role: "w"}},
		{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 60}},
		{LeaseGrant: &pb.LeaseGrantRequest{ID: 8, TTL: 60}},
		{Put: &pb.PutRequest{Key: []byte("z"), Lease: 8}},
		{AuthEnable: &pb.AuthEnableRequest{}},
	} {
		if out := r.must(today(t, q)); len(out.Results) != 1 || out.Results[0].Err != nil {
			t.Fatalf("%v: %+v", q, out.Results)
		}
	}
	ops := func(op ...*pb.RequestOp) []*pb.RequestOp { return op }
	compare := func(key string) []*pb.Compare { return []*pb.Compare{{Key: []byte(key)}} }
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txnOf(nil, ops(putOp("z")), nil).Txn}}
	rev := r.m.users.auth.Next().Revision()
	for _, x := range []struct {
		what string
		req  *pb.InternalRaftRequest
		rev  uint64
		want error
	}{
		{"a put", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a1")}}, rev, nil},
		{"a put by old rights", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a1")}}, rev - 1, auth.ErrAuthOldRevision},
		{"a put beyond", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("b")}}, rev, auth.ErrPermissionDenied},
		{"a put that shows what was there", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a1"), PrevKv: true}}, rev, auth.ErrPermissionDenied},
		{"a put on a lease", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a1"), Lease: 7}}, rev, nil},
		{"a put on a lease of others", &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a1"), Lease: 8}}, rev, auth.ErrPermissionDenied},
		{"a revoke of others", &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 8}}, rev, auth.ErrPermissionDenied},
		{"a delete", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("b")}}, rev, nil},
		{"a delete beyond", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("c")}}, rev, auth.ErrPermissionDenied},
		{"a delete that shows what was there", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), PrevKv: true}}, rev, auth.ErrPermissionDenied},
		{"a transaction", txnOf(compare("r"), ops(putOp("a1")), ops(delOp("a1", false))), rev, nil},
		{"a compare of others", txnOf(compare("z"), ops(putOp("a1")), nil), rev, auth.ErrPermissionDenied},
		{"one branch", txnOf(compare("r"), ops(putOp("z")), ops(putOp("a1"))), rev, auth.ErrPermissionDenied},
		{"the other branch", txnOf(compare("r"), ops(putOp("a1")), ops(putOp("z"))), rev, auth.ErrPermissionDenied},
		{"a read in a transaction", txnOf(nil, ops(putOp("a1"), getOp("a1")), nil), rev, auth.ErrPermissionDenied},
		{"a delete in a transaction", txnOf(nil, ops(delOp("z", false)), nil), rev, auth.ErrPermissionDenied},
		{"one that shows what was there", txnOf(nil, ops(delOp("a1", true)), nil), rev, auth.ErrPermissionDenied},
		{"a transaction within", txnOf(nil, ops(nested), nil), rev, auth.ErrPermissionDenied},
		{"a new user", &pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "v", Options: &authpb.UserAddOptions{NoPassword: true}}}, rev, auth.ErrPermissionDenied},
		{"an end of all rules", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}}, rev, auth.ErrPermissionDenied},
	} {
		before := r.dump()
		x.req.Header = &pb.RequestHeader{ID: 5, Username: "u", AuthRevision: x.rev}
		data, err := command.EncodeRequest(x.req)
		if err != nil {
			t.Fatal(err)
		}
		out := r.must(normal(data))
		if err := out.Results[0].Err; !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.what, err, x.want)
		}
		keys := func(dump string) string { return strings.SplitN(dump, "meta", 2)[0] }
		if x.want != nil && keys(r.dump()) != keys(before) {
			t.Errorf("%s was refused and has changed something", x.what)
		}
	}
}

// An already applied entry changes nothing, wherever a run begins.
func TestEntriesOnce(t *testing.T) {
	r := newReplica(t)
	var all []Entry
	for i := range 6 {
		e := today(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte{'k'}, Value: []byte{byte(i)}}})
		e.Index, e.Term = new(uint64(i+1)), new(uint64(1))
		all = append(all, Entry{Entry: e})
	}
	from := 0
	for to := 1; to <= len(all); to++ {
		var ents []Entry
		for _, e := range all[from:to] {
			ents = append(ents, Entry{Entry: proto.Clone(e.Entry).(*raftpb.Entry)})
		}
		if _, err := r.m.Apply(ents); err != nil {
			t.Fatal(err)
		}
		if got, want := r.m.KV().Rev(), ids.Revision(to+1); got != want || r.m.Applied() != ids.Index(to) {
			t.Fatalf("entries %d to %d: revision %d, want %d; applied %d", from+1, to, got, want, r.m.Applied())
		}
		if to == 3 {
			r.reopen()
		}
		from = to / 2
	}
}

// A transaction depends on all its compares, at whatever position one fails.
func TestEveryCompareDecides(t *testing.T) {
	holds := &pb.Compare{Key: []byte("k"), Target: pb.Compare_VERSION, Result: pb.Compare_EQUAL}
	fails := &pb.Compare{Key: []byte("k"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}
	for n := 1; n < 16; n++ {
		var compare []*pb.Compare
		want := true
		for i := range 4 {
			if n>>i&1 != 0 {
				compare = append(compare, holds)
			} else {
				compare, want = append(compare, fails), false
			}
		}
		r := newReplica(t)
		out := r.must(today(t, txnOf(compare, []*pb.RequestOp{putOp("done")}, []*pb.RequestOp{putOp("else")})))
		if got := out.Results[0].Resp.(*pb.TxnResponse).Succeeded; got != want || string(out.Changes[0].Key) == "done" != want {
			t.Errorf("%04b: succeeded %v, wrote %q", n, got, out.Changes[0].Key)
		}
	}
}
