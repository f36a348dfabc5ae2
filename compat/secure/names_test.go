package secure

import (
	"context"
	"crypto/tls"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"quorate/compat/pki"
)

// TestCommonNames has certificates name users. What a server answers to each must be the same for ours and real
// etcd, and for clients that reach gRPC on either way.
func TestCommonNames(t *testing.T) {
	t.Parallel()
	ca := pki.NewCA("ca")
	answers := map[string][]string{}
	var programs []string
	for _, program := range []string{etcd, real} {
		s := newSite(t)
		s.files.Put("ca.pem", ca.PEM)
		s.files.PutPair("m0", ca.Issue("m0"))
		m := s.members(program)[0]
		m.flags = s.tlsFlags("m0")
		m.start()
		as := func(cn string) *tls.Config {
			pair := ca.Issue(cn)
			return pki.Client(ca.PEM, &pair)
		}
		m.waitReady(as("root"))
		s.setUsers(m.client, as("root"))

		name := filepath.Base(program)
		programs = append(programs, name)
		for _, offers := range [][]string{nil, {"http/1.1"}} { // gRPC itself adds h2
			for _, cn := range []string{"root", "reader", "nobody", ""} {
				c := as(cn)
				c.NextProtos = offers
				answers[name] = append(answers[name], s.calls(m.client, c)...)
			}
		}
		for _, cn := range []string{"reader", ""} {
			answers[name] = append(answers[name], "gateway: "+strings.TrimSpace(gatewayText(t, "https://"+m.client, as(cn))))
		}
		m.stop()
	}
	if a, b := answers[programs[0]], answers[programs[1]]; !slices.Equal(a, b) {
		t.Errorf("answers differ:\n%s\n--\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
	t.Logf("%s", strings.Join(answers[programs[0]], "\n"))
	if got := answers[programs[0]]; got[0] != "get: OK" || got[3] != "get: OK" || !strings.Contains(got[4], "permission denied") {
		t.Errorf("got %q", got)
	}
}

// setUsers creates root and reader, who may read k, and enables authentication.
func (s *site) setUsers(addr string, c *tls.Config) {
	s.Helper()
	client, end := s.grpcClient(addr, c)
	defer end()
	ctx, cancel := context.WithTimeout(s.Context(), limit)
	defer cancel()
	a := pb.NewAuthClient(client.Conn)
	for _, f := range []func() error{
		func() error {
			_, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Options: &authpb.UserAddOptions{NoPassword: true}})
			return err
		},
		func() error {
			_, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "reader", Options: &authpb.UserAddOptions{NoPassword: true}})
			return err
		},
		func() error { _, err := a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "root"}); return err },
		func() error { _, err := a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}); return err },
		func() error {
			_, err := a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{Key: []byte("k"), PermType: authpb.Permission_READ}})
			return err
		},
		func() error {
			_, err := a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
			return err
		},
		func() error {
			_, err := a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "reader", Role: "r"})
			return err
		},
		func() error { _, err := client.PutWithin(limit, "k", "v"); return err },
		func() error { _, err := a.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err },
	} {
		if err := f(); err != nil {
			s.Fatal(err)
		}
	}
}

// calls reads, writes and watches k.
func (s *site) calls(addr string, c *tls.Config) []string {
	s.Helper()
	client, end := s.grpcClient(addr, c)
	defer end()
	ctx, cancel := context.WithTimeout(s.Context(), limit)
	defer cancel()
	text := func(what string, err error) string {
		if err == nil {
			return what + ": OK"
		}
		return what + ": " + status.Code(err).String() + " " + status.Convert(err).Message()
	}
	_, getErr := client.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
	_, putErr := client.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
	w, err := pb.NewWatchClient(client.Conn).Watch(ctx)
	if err == nil {
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2}}})
	}
	watched := ""
	for err == nil && watched == "" {
		var r *pb.WatchResponse
		if r, err = w.Recv(); err != nil {
			break
		}
		switch {
		case r.Canceled:
			watched = "watch: " + r.CancelReason
		case len(r.Events) > 0:
			watched = "watch: OK"
		}
	}
	if err != nil {
		watched = text("watch", err)
	}
	return []string{text("get", getErr), text("put", putErr), watched}
}

// gatewayText is the JSON gateway's answer to a read of k.
func gatewayText(t *testing.T, url string, c *tls.Config) string {
	t.Helper()
	got := gateway(t, url, c)
	if strings.Contains(got, `"kvs"`) {
		return "OK"
	}
	return got
}
