// Package grpcproxy is `etcd grpc-proxy`: it stands between clients and the members of a
// cluster, speaks etcd's API to both, and sends equal requests of many clients once.
//
// In: calls of clients, a client of the cluster, the values of the flags. Out: the members'
// answers. Reads that may be stale come from a bounded cache, watches of one range share a
// watch of a member, and the keepalives of a token share a stream. Always true: a client
// gets no answer that its own token would not get; every event of a watch is delivered once
// and in order, whichever shared watch carries it; a write through the proxy is never
// followed by a cached answer from before it; every wait ends when the client goes away or
// the proxy stops, and every queue has a bound.
package grpcproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"quorate/internal/clock"
	"quorate/internal/rpc"
	"quorate/internal/rpc/v3electionpb"
	"quorate/internal/rpc/v3lockpb"
)

// Options hold the values of the flags of the same names.
type Options struct {
	AdvertiseClientURL string
	ResolverPrefix     string
	ResolverTTL        int // seconds
	Namespace          string
	LeasingPrefix      string
	Ordering           bool
	LogCalls           bool          // log every message, in and out
	SyncInterval       time.Duration // interval of requests for the member list; 0: Endpoints never change

	Logger *zap.Logger
}

// Proxy serves the API from a cluster. It is safe for concurrent use.
type Proxy struct {
	o      Options
	lg     *zap.Logger
	client *clientv3.Client // its KV, Watcher and Lease may be wrapped
	own    *ownLeases

	cache *cache
	hub   *hub
	lease *leaseServer

	cluster *clusterServer

	ctx  context.Context // cancelled by Close; the cause is errStopped
	stop context.CancelCauseFunc
	wg   sync.WaitGroup
}

// errStopped is the error of calls in progress when the proxy stops. Clients retry, on
// another endpoint if they know one.
var errStopped = rpctypes.ErrGRPCStopped

// DialOptions are for the client that is passed to New. They disable retries: the clients
// of the proxy retry, which would multiply the attempts.
func DialOptions(maxSend, maxReceive int) []grpc.DialOption {
	var calls []grpc.CallOption
	if maxSend > 0 {
		calls = append(calls, grpc.MaxCallSendMsgSize(maxSend))
	}
	if maxReceive > 0 {
		calls = append(calls, grpc.MaxCallRecvMsgSize(maxReceive))
	}
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(paced), grpc.WithStreamInterceptor(direct), grpc.WithDefaultCallOptions(calls...),
	}
}

// New takes ownership of a client made with DialOptions. With ordering it waits for the
// first answer of the cluster, until ctx ends.
func New(ctx context.Context, c *clientv3.Client, o Options) (*Proxy, error) {
	p := &Proxy{o: o, lg: o.Logger, client: c}
	p.ctx, p.stop = context.WithCancelCause(context.Background())
	if o.Ordering {
		c.KV = &orderedKV{KV: c.KV, endpoints: c.Endpoints}
		if err := p.recoverOrder(ctx); err != nil {
			p.Close()
			return nil, err
		}
	}
	p.own = &ownLeases{Lease: c.Lease}
	c.Lease = p.own
	if o.Namespace != "" {
		c.KV = namespace.NewKV(c.KV, o.Namespace)
		c.Watcher = namespace.NewWatcher(c.Watcher, o.Namespace)
		c.Lease = namespace.NewLease(c.Lease, o.Namespace)
	}
	if o.LeasingPrefix != "" {
		kv, err := p.withLeasing(ctx)
		if err != nil {
			p.Close()
			return nil, err
		}
		c.KV = kv
	}
	p.cache = newCache(cacheEntries, cacheBytes)
	p.hub = newHub(p.ctx, c.Watcher, p.lg)
	p.lease = newLeaseServer(p)
	p.cluster = newClusterServer(p)
	if o.ResolverPrefix != "" {
		p.wg.Go(p.register)
	}
	if o.SyncInterval > 0 {
		p.wg.Go(p.followMembers)
	}
	return p, nil
}

// recoverOrder reads a revision from the cluster: no later answer may be older.
func (p *Proxy) recoverOrder(ctx context.Context) error {
	p.lg.Info("waiting for linearized read from cluster to recover ordering")
	for {
		_, err := p.client.KV.Get(ctx, "_", clientv3.WithKeysOnly())
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case isAuthError(err):
			// Without a user the proxy is never allowed to read. It learns the revision
			// from the first answer to a client.
			p.lg.Warn("reading needs a user; ordering begins with the first answer", zap.Error(err))
			return nil
		}
		p.lg.Warn("ordering recovery failed, retrying in 1s", zap.Error(err))
		select {
		case <-clock.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// withLeasing waits for the session that owns the leased keys.
func (p *Proxy) withLeasing(ctx context.Context) (clientv3.KV, error) {
	type made struct {
		kv  clientv3.KV
		err error
	}
	done := make(chan made, 1)
	under := p.client.KV
	go func() {
		kv, _, err := leasing.NewKV(p.client, p.o.LeasingPrefix)
		done <- made{kv, err}
	}()
	select {
	case m := <-done:
		if m.err != nil {
			return nil, fmt.Errorf("start leasing under %q: %w", p.o.LeasingPrefix, m.err)
		}
		return &leasingKV{KV: m.kv, under: under, keys: map[string]struct{}{}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ServerOptions are for the server that is passed to Register.
func (p *Proxy) ServerOptions() []grpc.ServerOption {
	unary, stream := rpc.CountCalls()
	unaries := []grpc.UnaryServerInterceptor{unary, p.unary}
	streams := []grpc.StreamServerInterceptor{stream, p.stream}
	if p.o.LogCalls {
		l := callLog{p.lg}
		unaries, streams = append(unaries, l.unary), append(streams, l.stream)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unaries...), grpc.ChainStreamInterceptor(streams...)}
}

// Register registers the services on s.
func (p *Proxy) Register(s *grpc.Server) {
	conn := p.client.ActiveConnection()
	pb.RegisterKVServer(s, &kvServer{kv: p.client.KV, cache: p.cache})
	pb.RegisterWatchServer(s, &watchServer{hub: p.hub, kv: p.client.KV})
	pb.RegisterLeaseServer(s, p.lease)
	pb.RegisterClusterServer(s, p.cluster)
	pb.RegisterMaintenanceServer(s, &maintenanceServer{up: pb.NewMaintenanceClient(conn)})
	pb.RegisterAuthServer(s, &authServer{up: pb.NewAuthClient(conn), changed: p.cache.clear})
	v3lockpb.RegisterLockServer(s, &lockServer{up: v3lockpb.NewLockClient(conn)})
	v3electionpb.RegisterElectionServer(s, &electionServer{up: v3electionpb.NewElectionClient(conn)})
}

// revokeTimeout bounds the revocations of a shutdown while no member answers.
const revokeTimeout = time.Second

// End ends the calls in progress with an error that makes clients retry. Later calls are
// rejected.
func (p *Proxy) End() { p.stop(errStopped) }

// Close stops everything and closes the client. It revokes the leases of the proxy's
// registration and leased keys, so that nothing has to wait for them to expire.
func (p *Proxy) Close() {
	p.End()
	if p.own != nil {
		ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
		p.own.revoke(ctx)
		cancel()
	}
	p.client.Close()
	p.wg.Wait()
	if p.hub != nil {
		p.hub.wait()
		p.lease.wait()
	}
}

// isAuthError reports whether err is about missing permissions.
func isAuthError(err error) bool {
	return slices.ContainsFunc([]error{
		rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision,
		rpctypes.ErrAuthFailed, rpctypes.ErrUserNotFound, rpctypes.ErrRoleNotFound,
	}, func(target error) bool { return errors.Is(err, target) })
}

// maxOwnLeases exceeds the number of concurrent sessions.
const maxOwnLeases = 8

// ownLeases records the leases of the proxy itself. Clients' leases are granted without it.
type ownLeases struct {
	clientv3.Lease
	mu  sync.Mutex
	ids []clientv3.LeaseID // the last maxOwnLeases; guarded by mu
}

// Grant records the granted lease.
func (l *ownLeases) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	r, err := l.Lease.Grant(ctx, ttl)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ids) == maxOwnLeases {
		l.ids = slices.Delete(l.ids, 0, 1) // its session ended long ago
	}
	l.ids = append(l.ids, r.ID)
	return r, nil
}

func (l *ownLeases) revoke(ctx context.Context) {
	l.mu.Lock()
	ids := l.ids
	l.ids = nil
	l.mu.Unlock()
	for _, id := range slices.Backward(ids) {
		// A lease that is gone, or whose member does not answer, expires by itself.
		_, _ = l.Lease.Revoke(ctx, id)
	}
}
