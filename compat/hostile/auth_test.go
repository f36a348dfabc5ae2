package hostile

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// With authentication on: unauthenticated clients, clients with forged tokens, guessed passwords, and a user who
// requests keys without permission, as fast as they can. All of it is refused, and the owner is served
// meanwhile.
func TestUsers(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 3*limit)
	defer cancel()
	m, err := harness.StartSingle(ctx, harness.Config{Binary: etcd, Dir: t.TempDir(), Args: []string{"--bcrypt-cost", "8"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	c := child.Dial(t, m.ClientAddr())
	auth := pb.NewAuthClient(c.Conn)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err = auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "r"})
	must("add root", err)
	_, err = auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	must("make root root", err)
	_, err = auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "mallory", Password: "m"})
	must("add mallory", err)
	_, err = auth.AuthEnable(ctx, &pb.AuthEnableRequest{})
	must("enable", err)
	login := func(user, password string) (context.Context, error) {
		r, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		if err != nil {
			return nil, err
		}
		return metadata.AppendToOutgoingContext(ctx, "token", r.Token), nil
	}
	root, err := login("root", "r")
	must("log in", err)
	mallory, err := login("mallory", "m")
	must("log in", err)
	forged := metadata.AppendToOutgoingContext(ctx, "token", "abcdefghijklmnop.1")

	var served, refused atomic.Int64
	stop := make(chan struct{})
	var owner sync.WaitGroup
	owner.Go(func() {
		for {
			if _, err := c.Put(root, &pb.PutRequest{Key: []byte("secret"), Value: []byte("x")}); err != nil {
				t.Errorf("the owner's write: %v", err)
				return
			}
			served.Add(1)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	wants := func(err error, texts ...string) {
		for _, text := range texts {
			if err != nil && strings.Contains(status.Convert(err).Message(), text) {
				refused.Add(1)
				return
			}
		}
		t.Errorf("%v, want %q", err, texts)
	}
	attacker := child.Dial(t, m.ClientAddr())
	guesses := pb.NewAuthClient(attacker.Conn)
	key := []byte("secret")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 100 {
				_, err := attacker.Range(mallory, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
				wants(err, "permission denied")
				_, err = attacker.Put(forged, &pb.PutRequest{Key: key})
				wants(err, "invalid auth token")
				_, err = attacker.Put(ctx, &pb.PutRequest{Key: key})
				wants(err, "user name is empty")
				_, err = attacker.Txn(mallory, &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}}}}}}})
				wants(err, "permission denied")
				_, err = guesses.UserList(mallory, &pb.AuthUserListRequest{})
				wants(err, "permission denied")
			}
		})
	}
	for i := range 60 {
		all.Go(func() { // each guess costs a password hash; guesses wait for each other, the owner does not wait for them
			_, err := guesses.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: fmt.Sprint(i)})
			wants(err, "authentication failed", "too many requests")
		})
	}
	all.Go(func() {
		s, err := attacker.Watcher.Watch(mallory)
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			for range 5000 {
				if s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key}}}) != nil {
					return
				}
			}
		}()
		for range 5000 {
			r, err := s.Recv()
			if err != nil || !r.Canceled || !strings.Contains(r.CancelReason, "permission denied") {
				t.Errorf("watch: %v, %v", r, err)
				return
			}
			refused.Add(1)
		}
	})
	all.Wait()
	close(stop)
	owner.Wait()
	if served.Load() < 5 {
		t.Errorf("the owner was served %d times", served.Load())
	}
	r, err := c.Range(root, &pb.RangeRequest{Key: key})
	if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "x" {
		t.Errorf("%v, %v", r, err)
	}
	mem, err := m.Memory()
	if err != nil || int64(mem.Peak) > 400<<20 {
		t.Errorf("%d MB at the peak, %v", int64(mem.Peak)>>20, err)
	}
	t.Logf("%d requests were refused, the owner was served %d times, peak of memory %d MB", refused.Load(), served.Load(), int64(mem.Peak)>>20)
}
