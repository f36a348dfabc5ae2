package wire

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
)

// stored are messages of each kind that etcd stores with strings in them. x is the string.
func stored(x string) []proto.Message {
	h := &pb.RequestHeader{ID: 7, Username: x, AuthRevision: 3}
	return []proto.Message{
		&pb.InternalRaftRequest{Header: h, AuthUserAdd: &pb.AuthUserAddRequest{Name: x, Password: "p", Options: &authpb.UserAddOptions{NoPassword: true}, HashedPassword: x}},
		&pb.InternalRaftRequest{Header: h, AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "u", Role: x}},
		&pb.InternalRaftRequest{Header: h, AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: x,
			Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("k"), RangeEnd: []byte{0}}}},
		&pb.InternalRaftRequest{Header: h, Txn: &pb.TxnRequest{
			Compare: []*pb.Compare{{Result: pb.Compare_LESS, Key: []byte("c"), TargetUnion: &pb.Compare_Version{Version: 4}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Lease: -1}}}, {}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), PrevKv: true}}}}}},
		&pb.InternalRaftRequest{ID: 9, Header: h, LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 1, Remaining_TTL: 2}, {ID: -3}}}},
		&pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: 1 << 63, MemberAttributes: &membershippb.Attributes{Name: x, ClientUrls: []string{"a", x}}}},
		&pb.InternalRaftRequest{Header: h, Alarm: &pb.AlarmRequest{Action: 1, MemberID: 2, Alarm: 1}},
		&authpb.User{Name: []byte("u"), Password: []byte{1}, Roles: []string{"root", x}, Options: &authpb.UserAddOptions{}},
	}
}

func TestStringsMayHoldAnyBytes(t *testing.T) {
	const valid, other = "\x01\x02\x03", "\xff\xfe\x80"
	for i, m := range stored(valid) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		want, got := stored(other)[i], m.ProtoReflect().New().Interface()
		b = bytes.ReplaceAll(b, []byte(valid), []byte(other))
		if err := Unmarshal(b, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%x:\n got %v, %v\nwant %v", b, got, err, want)
		}
	}
}

// FuzzUnmarshal compares with protobuf's decoder what that accepts.
func FuzzUnmarshal(f *testing.F) {
	for _, x := range []string{"", "abc", "\xff"} {
		for _, m := range stored(x) {
			b, _ := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{&pb.InternalRaftRequest{}, &authpb.User{}, &authpb.Role{}} {
			want, got := m, m.ProtoReflect().New().Interface()
			wantErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
			err := unmarshal(b, got.ProtoReflect(), 10_000)
			if wantErr == nil && (err != nil || !proto.Equal(got, want)) {
				t.Errorf("%x:\n got %v, %v\nwant %v", b, got, err, want)
			}
			if err := Unmarshal(b, got.ProtoReflect().New().Interface()); wantErr == nil && err != nil {
				t.Errorf("%x: %v", b, err)
			}
		}
	})
}
