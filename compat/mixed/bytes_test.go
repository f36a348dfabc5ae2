package mixed

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// asIs sends bytes as a request, whatever they are, and decodes the answer.
type asIs struct{}

func (asIs) Name() string                       { return "proto" }
func (asIs) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (asIs) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }

func invoke(t *testing.T, m *member, method string, req []byte, resp proto.Message) {
	t.Helper()
	must(t, m, method, func(ctx context.Context, c *child.Client) (struct{}, error) {
		return struct{}{}, c.Conn.Invoke(ctx, "/etcdserverpb."+method, req, resp, grpc.ForceCodec(asIs{}))
	})
}

// Requests that the protobuf libraries of the releases read differently have the same effect on
// all members.
func TestRequestsReadDifferently(t *testing.T) {
	t.Parallel()
	g := found(t, nil, etcd36, ours, etcd35)
	old, own := g.members[0], g.members[1]
	g.version(g.oldest().cluster)
	// Two puts in one operation, of the key and of the value: 3.7 merges them, others take the last.
	invoke(t, own, "KV/Txn", []byte("\x12\x0a\x12\x03\x0a\x01a\x12\x03\x12\x01x"), &pb.TxnResponse{})
	// A lease that is no number: 3.7 takes it for a field that it does not know, others end.
	invoke(t, own, "KV/Put", []byte("\x0a\x01k\x12\x01v\x1a\x00"), &pb.PutResponse{})
	// A user whose name is not UTF-8, which only members up to 3.6 admit.
	invoke(t, old, "Auth/UserAdd", []byte("\x0a\x02\xffA\x12\x01p"), &pb.AuthUserAddResponse{})
	invoke(t, old, "Auth/RoleAdd", []byte("\x0a\x02\xfeB"), &pb.AuthRoleAddResponse{})
	invoke(t, old, "Auth/UserGrantRole", []byte("\x0a\x02\xffA\x12\x02\xfeB"), &pb.AuthUserGrantRoleResponse{})
	check := func() {
		t.Helper()
		for _, m := range g.members {
			child.Eventually(t, limit, fmt.Sprintf("%s has applied everything", m), func() error {
				ctx, cancel := m.within()
				defer cancel()
				s, err := pb.NewAuthClient(m.client.Conn).AuthStatus(ctx, &pb.AuthStatusRequest{})
				if err != nil || s.AuthRevision != 4 {
					return fmt.Errorf("auth revision %d, %v", s.GetAuthRevision(), err)
				}
				return nil
			})
			if n := count(t, m, "a") + count(t, m, "k"); n != 2 {
				t.Errorf("%s has %d of the two keys", m, n)
			}
		}
		g.equal()
	}
	check()
	g.kill(own)
	g.restart(own)
	g.ready(own)
	check()
}
