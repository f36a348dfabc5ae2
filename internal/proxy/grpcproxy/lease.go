package grpcproxy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type leaseServer struct {
	pb.UnimplementedLeaseServer
	up     pb.LeaseClient
	lessor clientv3.Lease // with the namespace taken into account

	plain, strict *keeper // strict is for those who want to hear that the leader is lost
}

func newLeaseServer(p *Proxy) *leaseServer {
	up := pb.NewLeaseClient(p.client.ActiveConnection())
	return &leaseServer{up: up, lessor: p.client.Lease,
		plain: newKeeper(p.ctx, caller{}, up.LeaseKeepAlive), strict: newKeeper(p.ctx, caller{requireLeader: true}, up.LeaseKeepAlive)}
}

// wait returns when nothing is sent any more. It is to be called after the
// context of the proxy has ended.
func (s *leaseServer) wait() {
	for _, k := range []*keeper{s.plain, s.strict} {
		k.mu.Lock()
		k.mu.Unlock() // nobody who has seen the context go on is still starting it
		k.wg.Wait()
	}
}

func (s *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return s.up.LeaseGrant(ctx, r)
}

func (s *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return s.up.LeaseRevoke(ctx, r)
}

func (s *leaseServer) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return s.up.LeaseLeases(ctx, r)
}

func (s *leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	var opts []clientv3.LeaseOption
	if r.Keys {
		opts = append(opts, clientv3.WithAttachedKeys())
	}
	t, err := s.lessor.TimeToLive(ctx, clientv3.LeaseID(r.ID), opts...)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseTimeToLiveResponse{Header: t.ResponseHeader, ID: int64(t.ID), TTL: t.TTL, GrantedTTL: t.GrantedTTL, Keys: t.Keys}, nil
}

// maxRenewals is how many keepalives of one stream may wait for their answers.
// At the bound the client is read no further.
const maxRenewals = 1024

// renewals is a stream of keepalives of a client.
type renewals struct {
	places chan struct{} // one for each that waits
	out    chan *pb.LeaseKeepAliveResponse
	cancel context.CancelCauseFunc
}

func (r *renewals) answer(a *pb.LeaseKeepAliveResponse) { r.out <- a } // there is a place for it

// LeaseKeepAlive answers each request with what the member says to it.
func (s *leaseServer) LeaseKeepAlive(client grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	k := s.plain
	if callerOf(client.Context()).requireLeader {
		k = s.strict
	}
	ctx, cancel := context.WithCancelCause(client.Context())
	defer cancel(nil)
	r := &renewals{places: make(chan struct{}, maxRenewals), out: make(chan *pb.LeaseKeepAliveResponse, maxRenewals), cancel: cancel}
	k.enter(r)
	defer k.leave(r)
	go func() {
		// It ends with the call at the latest.
		for {
			req, err := client.Recv()
			for i := 0; errors.Is(err, io.EOF) && i < maxRenewals; i++ {
				// The client says no more, and still gets the answers.
				select {
				case r.places <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				cancel(err)
				return
			}
			select {
			case r.places <- struct{}{}:
				k.renew(r, req.ID)
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		// A client that does not read holds it up no longer than the call.
		for {
			select {
			case a := <-r.out:
				if err := client.Send(a); err != nil {
					cancel(err)
					return
				}
				<-r.places
			case <-ctx.Done():
				return
			}
		}
	}()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// keeper sends the keepalives of all clients over one stream to a member. One
// that is on its way already serves everybody who asks for the same lease.
type keeper struct {
	as   caller
	open func(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error)
	ctx  context.Context
	wg   sync.WaitGroup

	mu      sync.Mutex
	streams map[*renewals]struct{}
	waiting map[int64][]*renewals // by lease; bounded by the places of the streams
	queue   []int64               // leases in waiting that are not sent yet
	filled  chan struct{}         // has a place for who sends, cap 1
	running bool
}

// keeperPause is between two streams that fail.
const keeperPause = 200 * time.Millisecond

func newKeeper(ctx context.Context, as caller, open func(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error)) *keeper {
	return &keeper{as: as, open: open, ctx: ctx, streams: map[*renewals]struct{}{}, waiting: map[int64][]*renewals{}, filled: make(chan struct{}, 1)}
}

func (k *keeper) enter(r *renewals) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.streams[r] = struct{}{}
}

// leave forgets r with all that it waits for.
func (k *keeper) leave(r *renewals) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.streams, r)
}

func (k *keeper) renew(r *renewals, id int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.streams[r]; !ok || k.ctx.Err() != nil {
		return
	}
	k.waiting[id] = append(k.waiting[id], r)
	if len(k.waiting[id]) > 1 {
		return
	}
	k.queue = append(k.queue, id)
	k.wake()
	if !k.running {
		k.running = true
		k.wg.Go(k.run)
	}
}

func (k *keeper) wake() {
	select {
	case k.filled <- struct{}{}:
	default:
	}
}

// run keeps a stream open from the first keepalive on. When it breaks and nobody
// is there, the next keepalive starts it again.
func (k *keeper) run() {
	for k.goesOn() {
		err := k.talk()
		if k.as.requireLeader && errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) || !mayPass(err) {
			k.fail(err)
		}
		k.again()
		select {
		case <-time.After(keeperPause):
		case <-k.ctx.Done():
		}
	}
}

func (k *keeper) goesOn() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running = k.ctx.Err() == nil && len(k.streams) > 0
	return k.running
}

// mayPass reports whether a stream that ended with err may be tried again. As
// with a stream of its own, the client decides about other errors.
func mayPass(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Internal, codes.OK:
		return true
	}
	return errors.Is(err, io.EOF)
}

func (k *keeper) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for r := range k.streams {
		r.cancel(err)
	}
	clear(k.streams)
	clear(k.waiting)
	k.queue = nil
}

// again puts all that waits into the queue.
func (k *keeper) again() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.queue = k.queue[:0]
	for id, rs := range k.waiting {
		if k.wanted(rs) {
			k.queue = append(k.queue, id)
		} else {
			delete(k.waiting, id)
		}
	}
	k.wake()
}

func (k *keeper) wanted(rs []*renewals) bool {
	for _, r := range rs {
		if _, ok := k.streams[r]; ok {
			return true
		}
	}
	return false
}

// talk serves one stream to a member until it ends.
func (k *keeper) talk() error {
	ctx, cancel := context.WithCancel(k.as.as(k.ctx))
	defer cancel()
	up, err := k.open(ctx)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	k.wg.Go(func() {
		for {
			a, err := up.Recv()
			if err != nil {
				failed <- err
				cancel()
				return
			}
			k.answer(a)
		}
	})
	for {
		id, ok := k.next()
		if !ok {
			select {
			case <-k.filled:
				continue
			case <-ctx.Done():
				return <-failed // it ends with ctx
			}
		}
		if up.Send(&pb.LeaseKeepAliveRequest{ID: id}) != nil {
			return <-failed // which knows why
		}
	}
}

func (k *keeper) next() (id int64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		k.queue = nil
		return 0, false
	}
	id, k.queue = k.queue[0], k.queue[1:]
	return id, true
}

func (k *keeper) answer(a *pb.LeaseKeepAliveResponse) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.waiting[a.ID] {
		if _, ok := k.streams[r]; ok {
			r.answer(a)
		}
	}
	delete(k.waiting, a.ID)
}
