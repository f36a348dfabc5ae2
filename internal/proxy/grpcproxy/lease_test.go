package grpcproxy

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"quorate/internal/lease"
)

// upLeases is a member's stream of keepalives.
type upLeases struct {
	grpc.ClientStream
	ctx  context.Context
	sent chan int64
	back chan any // *pb.LeaseKeepAliveResponse or error
}

func (u *upLeases) Send(r *pb.LeaseKeepAliveRequest) error {
	select {
	case u.sent <- r.ID:
		return nil
	case <-u.ctx.Done():
		return io.EOF
	}
}

func (u *upLeases) Recv() (*pb.LeaseKeepAliveResponse, error) {
	select {
	case b := <-u.back:
		if err, ok := b.(error); ok {
			return nil, err
		}
		return b.(*pb.LeaseKeepAliveResponse), nil
	case <-u.ctx.Done():
		return nil, status.FromContextError(u.ctx.Err()).Err()
	}
}

// leaseClient is a client's stream.
type leaseClient struct {
	grpc.ServerStream
	ctx context.Context
	in  chan int64
	out chan *pb.LeaseKeepAliveResponse
	end context.CancelFunc
}

func (c *leaseClient) Context() context.Context { return c.ctx }

func (c *leaseClient) Recv() (*pb.LeaseKeepAliveRequest, error) {
	select {
	case id, ok := <-c.in:
		if !ok {
			return nil, io.EOF
		}
		return &pb.LeaseKeepAliveRequest{ID: id}, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func (c *leaseClient) Send(r *pb.LeaseKeepAliveResponse) error {
	select {
	case c.out <- r:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// get receives, and fails the test if nothing arrives.
func get[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing comes")
		panic("unreachable")
	}
}

func put[T any](t *testing.T, c chan<- T, v T) {
	t.Helper()
	select {
	case c <- v:
	case <-time.After(patience):
		t.Fatal("nobody takes it")
	}
}

type leaseBench struct {
	t      *testing.T
	opened chan *upLeases
	server *leaseServer
}

func newLeaseBench(t *testing.T) *leaseBench {
	b := &leaseBench{t: t, opened: make(chan *upLeases, 100)}
	ctx, stop := context.WithCancel(context.Background())
	open := func(ctx context.Context, _ ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
		u := &upLeases{ctx: ctx, sent: make(chan int64), back: make(chan any)}
		b.opened <- u
		return u, nil
	}
	b.server = &leaseServer{keepers: newKeepers(ctx, open)}
	t.Cleanup(func() {
		stop()
		b.server.wait()
	})
	return b
}

// keeper waits until c has a keeper.
func (b *leaseBench) keeper(c caller) *keeper {
	b.t.Helper()
	ks := b.server.keepers
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		ks.mu.Lock()
		k := ks.all[c]
		ks.mu.Unlock()
		if k != nil {
			return k
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("nobody keeps leases for %+v", c)
		}
	}
}

// connect returns a client and the channel with the result of its call.
func (b *leaseBench) connect(md ...string) (*leaseClient, <-chan error) {
	ctx, end := context.WithCancel(metadata.NewIncomingContext(context.Background(), metadata.Pairs(md...)))
	b.t.Cleanup(end)
	c := &leaseClient{ctx: ctx, in: make(chan int64), out: make(chan *pb.LeaseKeepAliveResponse), end: end}
	done := make(chan error, 1)
	go func() {
		err := b.server.LeaseKeepAlive(c)
		end()
		done <- err
	}()
	return c, done
}

func renewed(id, ttl int64) *pb.LeaseKeepAliveResponse {
	return &pb.LeaseKeepAliveResponse{ID: id, TTL: ttl}
}

// waitingFor waits until n keepalives of a lease wait for an answer.
func (k *keeper) waitingFor(t *testing.T, id int64, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		got := len(k.waiting[lease.ID(id)])
		k.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d keepalives wait, want %d", got, n)
		}
	}
}

// All clients share a stream, and concurrent requests for a lease share an answer.
func TestKeepAlivesShare(t *testing.T) {
	b := newLeaseBench(t)
	c, _ := b.connect()
	d, _ := b.connect()
	put(t, c.in, 7)
	up := get(t, b.opened)
	b.keeper(caller{}).waitingFor(t, 7, 1)
	put(t, d.in, 7)
	b.keeper(caller{}).waitingFor(t, 7, 2)
	put(t, d.in, 8)
	if id := get(t, up.sent); id != 7 {
		t.Fatalf("sent %d", id)
	}
	if id := get(t, up.sent); id != 8 {
		t.Fatalf("sent %d after the first", id)
	}
	put(t, up.back, any(renewed(8, 80)))
	if r := get(t, d.out); r.ID != 8 || r.TTL != 80 {
		t.Fatal(r)
	}
	put(t, up.back, any(renewed(7, 70)))
	for _, out := range []chan *pb.LeaseKeepAliveResponse{c.out, d.out} {
		if r := get(t, out); r.ID != 7 || r.TTL != 70 {
			t.Fatal(r)
		}
	}
	put(t, up.back, any(renewed(9, 90))) // there was no request
	put(t, c.in, 7)                      // answered before, so it is asked for again
	if id := get(t, up.sent); id != 7 {
		t.Fatalf("sent %d", id)
	}
	put(t, up.back, any(renewed(7, 0)))
	if r := get(t, c.out); r.TTL != 0 {
		t.Fatal(r)
	}
	if len(b.opened) != 0 {
		t.Error("more than one stream to the member")
	}
}

// A stream that breaks is opened again, and pending keepalives are sent again.
func TestKeepAliveReconnects(t *testing.T) {
	b := newLeaseBench(t)
	c, _ := b.connect()
	put(t, c.in, 7)
	up := get(t, b.opened)
	get(t, up.sent)
	put(t, up.back, any(status.Error(codes.Unavailable, "gone")))
	up = get(t, b.opened)
	if id := get(t, up.sent); id != 7 {
		t.Fatalf("sent %d", id)
	}
	put(t, up.back, any(renewed(7, 70)))
	get(t, c.out)

	// Without clients there is no stream, until one connects.
	c.end()
	put(t, up.back, any(status.Error(codes.Unavailable, "gone again")))
	d, _ := b.connect()
	put(t, d.in, 8)
	up = get(t, b.opened)
	if id := get(t, up.sent); id != 8 {
		t.Fatalf("sent %d", id)
	}
}

func TestKeepAliveEnds(t *testing.T) {
	b := newLeaseBench(t)
	plain, plainDone := b.connect()
	strict, strictDone := b.connect(rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	_, idleDone := b.connect(rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	put(t, plain.in, 7)
	plainUp := get(t, b.opened)
	get(t, plainUp.sent)
	put(t, strict.in, 8)
	strictUp := get(t, b.opened)
	get(t, strictUp.sent)
	if md, _ := metadata.FromOutgoingContext(strictUp.ctx); first(md, rpctypes.MetadataRequireLeaderKey) != rpctypes.MetadataHasLeader {
		t.Error("the member is not told that a leader is required")
	}
	b.keeper(caller{requireLeader: true}).enterWait(t, 2)
	put(t, strictUp.back, any(error(rpctypes.ErrGRPCNoLeader)))
	for _, done := range []<-chan error{strictDone, idleDone} {
		if err := get(t, done); !errors.Is(err, rpctypes.ErrGRPCNoLeader) {
			t.Errorf("without a leader: %v", err)
		}
	}
	put(t, plainUp.back, any(error(rpctypes.ErrGRPCNoLeader)))
	plainUp = get(t, b.opened)
	get(t, plainUp.sent)
	// A client that has stopped sending still gets its answers.
	close(plain.in)
	put(t, plainUp.back, any(renewed(7, 70)))
	get(t, plain.out)
	if err := get(t, plainDone); err != nil {
		t.Errorf("at the client's end: %v", err)
	}
	other, otherDone := b.connect()
	put(t, other.in, 9)
	plainUp = get(t, b.opened) // the one before has ended with its last client
	get(t, plainUp.sent)
	put(t, plainUp.back, any(error(rpctypes.ErrGRPCInvalidAuthToken)))
	if err := get(t, otherDone); !errors.Is(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("refused: %v", err)
	}
}

// Members decide by the token. A rejected caller ends alone: other callers keep their
// streams, and so do requests with the same token for another lease.
func TestKeepAliveCallers(t *testing.T) {
	b := newLeaseBench(t)
	open := func(token string, id int64) (*leaseClient, <-chan error, *upLeases) {
		t.Helper()
		c, done := b.connect(rpctypes.TokenFieldNameGRPC, token)
		put(t, c.in, id)
		up := get(t, b.opened)
		if md, _ := metadata.FromOutgoingContext(up.ctx); first(md, rpctypes.TokenFieldNameGRPC) != token {
			t.Errorf("the member is told %v, want the token %q", md, token)
		}
		if got := get(t, up.sent); got != id {
			t.Fatalf("sent %d", got)
		}
		return c, done, up
	}
	alice, _, aliceUp := open("alice", 1)
	_, bobDone, bobUp := open("bob", 2)
	other, _ := b.connect(rpctypes.TokenFieldNameGRPC, "bob")
	put(t, other.in, 3)
	if id := get(t, bobUp.sent); id != 3 {
		t.Fatalf("sent %d", id)
	}
	put(t, bobUp.back, any(error(rpctypes.ErrGRPCPermissionDenied))) // answers the first, 2
	if err := get(t, bobDone); !errors.Is(err, rpctypes.ErrGRPCPermissionDenied) {
		t.Errorf("not permitted: %v", err)
	}
	bobUp = get(t, b.opened)
	if id := get(t, bobUp.sent); id != 3 {
		t.Fatalf("sent %d again", id)
	}
	put(t, bobUp.back, any(renewed(3, 30)))
	get(t, other.out)
	put(t, aliceUp.back, any(renewed(1, 10)))
	get(t, alice.out)
	if len(b.opened) != 0 {
		t.Error("one more stream to a member")
	}

	// A token that is no longer valid ends the streams that use it.
	put(t, alice.in, 1)
	get(t, aliceUp.sent)
	put(t, other.in, 3)
	get(t, bobUp.sent)
	put(t, bobUp.back, any(error(rpctypes.ErrGRPCInvalidAuthToken)))
	get(t, other.ctx.Done())
	put(t, aliceUp.back, any(renewed(1, 10)))
	get(t, alice.out)

	// With its last stream, the stream to the member ends.
	alice.end()
	get(t, aliceUp.ctx.Done())
}

// enterWait waits until n streams are known.
func (k *keeper) enterWait(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		got := len(k.streams)
		k.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams, want %d", got, n)
		}
	}
}

// The proxy stops reading from a client that sends and does not read.
func TestKeepAliveBound(t *testing.T) {
	b := newLeaseBench(t)
	c, done := b.connect()
	for id := range int64(maxRenewals + 1) { // the last one waits for a place
		put(t, c.in, id)
	}
	up := get(t, b.opened)
	for range maxRenewals {
		get(t, up.sent)
	}
	b.keeper(caller{}).waitingFor(t, maxRenewals, 0)
	b.keeper(caller{}).waitingFor(t, maxRenewals-1, 1)
	put(t, up.back, any(renewed(5, 50)))
	get(t, c.out) // which makes room
	if id := get(t, up.sent); id != maxRenewals {
		t.Errorf("sent %d", id)
	}
	c.end()
	get(t, done)
}
