package grpcproxy

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"quorate/internal/clock"
	"quorate/internal/lease"

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

	keepers *keepers
}

func newLeaseServer(p *Proxy) *leaseServer {
	up := pb.NewLeaseClient(p.client.ActiveConnection())
	return &leaseServer{up: up, lessor: p.client.Lease, keepers: newKeepers(p.ctx, up.LeaseKeepAlive)}
}

// wait returns when nothing is being sent any more. Call it after the context of the proxy
// has ended.
func (s *leaseServer) wait() { s.keepers.wait() }

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

// maxRenewals is the number of keepalives of one stream that may wait for answers. At the
// limit the proxy stops reading from the client.
const maxRenewals = 1024

// renewals is a client's stream of keepalives.
type renewals struct {
	places chan struct{} // one token for each pending keepalive
	out    chan *pb.LeaseKeepAliveResponse
	cancel context.CancelCauseFunc
}

func (r *renewals) answer(a *pb.LeaseKeepAliveResponse) { r.out <- a } // there is a free place

// LeaseKeepAlive answers each request with the member's answer.
func (s *leaseServer) LeaseKeepAlive(client grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	ctx, cancel := context.WithCancelCause(client.Context())
	defer cancel(nil)
	r := &renewals{places: make(chan struct{}, maxRenewals), out: make(chan *pb.LeaseKeepAliveResponse, maxRenewals), cancel: cancel}
	k := s.keepers.enter(callerOf(ctx), r)
	defer s.keepers.leave(k, r)
	go func() {
		// It ends with the call at the latest.
		for {
			req, err := client.Recv()
			for i := 0; errors.Is(err, io.EOF) && i < maxRenewals; i++ {
				// The client sends no more, and still gets the answers.
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
				k.renew(r, lease.ID(req.ID))
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		// A client that does not read delays it only until the call ends.
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

type keepAliveOpener func(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error)

// keepers has a keeper for each caller with streams: members decide by the token whose
// lease may be renewed, and a rejected caller must not take others with it.
type keepers struct {
	open keepAliveOpener
	ctx  context.Context
	wg   sync.WaitGroup

	mu  sync.Mutex
	all map[caller]*keeper // bounded by the number of client streams
}

func newKeepers(ctx context.Context, open keepAliveOpener) *keepers {
	return &keepers{open: open, ctx: ctx, all: map[caller]*keeper{}}
}

// enter finds or starts the keeper of c, and adds r to it.
func (ks *keepers) enter(c caller, r *renewals) *keeper {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	k := ks.all[c]
	if k == nil {
		k = newKeeper(ks.ctx, c, ks.open)
		ks.all[c] = k
		if ks.ctx.Err() == nil {
			ks.wg.Go(k.run)
		}
	}
	k.enter(r)
	return k
}

// leave removes r with all its pending keepalives. A keeper stops with its last stream.
func (ks *keepers) leave(k *keeper, r *renewals) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if k.leave(r) == 0 {
		k.end()
		delete(ks.all, k.as)
	}
}

func (ks *keepers) wait() {
	ks.mu.Lock()
	//lint:ignore SA2001 the next line says what for
	ks.mu.Unlock() // no caller that saw the context active is still starting a keeper
	ks.wg.Wait()
}

// keeper sends the keepalives of all streams of a caller over one stream to a member. A
// keepalive in flight serves all requests for the same lease. Members answer in the order
// of the requests, so an error of the stream belongs to the oldest unanswered request.
type keeper struct {
	as   caller
	open keepAliveOpener
	ctx  context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	streams map[*renewals]struct{}
	waiting map[lease.ID][]*renewals // by lease; bounded by the places of the streams
	queue   []lease.ID               // leases in waiting that are not sent yet
	sent    []lease.ID               // sent ones, oldest first
	filled  chan struct{}            // wakes up the sender; capacity 1
}

// keeperPause is the pause between two failing streams.
const keeperPause = 200 * time.Millisecond

func newKeeper(ctx context.Context, as caller, open keepAliveOpener) *keeper {
	k := &keeper{as: as, open: open, streams: map[*renewals]struct{}{}, waiting: map[lease.ID][]*renewals{}, filled: make(chan struct{}, 1)}
	k.ctx, k.end = context.WithCancel(ctx)
	return k
}

func (k *keeper) enter(r *renewals) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.streams[r] = struct{}{}
}

// leave returns the number of streams that remain.
func (k *keeper) leave(r *renewals) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.streams, r)
	return len(k.streams)
}

func (k *keeper) renew(r *renewals, id lease.ID) {
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
}

func (k *keeper) wake() {
	select {
	case k.filled <- struct{}{}:
	default:
	}
}

// run keeps a stream open from the first keepalive on.
func (k *keeper) run() {
	select {
	case <-k.filled:
		k.wake()
	case <-k.ctx.Done():
	}
	for k.ctx.Err() == nil {
		err := k.talk()
		if k.ctx.Err() != nil {
			return
		}
		k.settle(err)
		select {
		case <-clock.After(keeperPause):
		case <-k.ctx.Done():
		}
	}
}

// settle reports err to the streams that it concerns. Other pending keepalives are sent
// again.
func (k *keeper) settle(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) && k.as.requireLeader:
		// Streams without pending keepalives need to know as well.
		for r := range k.streams {
			k.refuse(r, err)
		}
	case mayPass(err):
	case status.Code(err) == codes.PermissionDenied && len(k.sent) > 0:
		for _, r := range k.waiting[k.sent[0]] {
			k.refuse(r, err)
		}
	default:
		for _, rs := range k.waiting {
			for _, r := range rs {
				k.refuse(r, err)
			}
		}
	}
	k.again()
}

// refuse ends a stream. k.mu must be held.
func (k *keeper) refuse(r *renewals, err error) {
	r.cancel(err)
	delete(k.streams, r)
}

// mayPass reports whether to retry after a stream that ended with err. As with a stream of
// its own, the client decides about other errors.
func mayPass(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Internal, codes.OK:
		return true
	}
	return errors.Is(err, io.EOF)
}

// again moves all pending keepalives to the queue. k.mu must be held.
func (k *keeper) again() {
	k.queue, k.sent = k.queue[:0], nil
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
	go func() { // k.talk waits for it
		for {
			a, err := up.Recv()
			if err != nil {
				failed <- err
				cancel()
				return
			}
			k.answer(a)
		}
	}()
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
		if up.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}) != nil {
			return <-failed // Recv returns the reason
		}
	}
}

func (k *keeper) next() (id lease.ID, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		k.queue = nil
		return 0, false
	}
	id, k.queue = k.queue[0], k.queue[1:]
	k.sent = append(k.sent, id)
	return id, true
}

func (k *keeper) answer(a *pb.LeaseKeepAliveResponse) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.waiting[lease.ID(a.ID)] {
		if _, ok := k.streams[r]; ok {
			r.answer(a)
		}
	}
	delete(k.waiting, lease.ID(a.ID))
	if i := slices.Index(k.sent, lease.ID(a.ID)); i >= 0 {
		k.sent = slices.Delete(k.sent, i, i+1)
	}
}
