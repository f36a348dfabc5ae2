package grpcproxy

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"quorate/internal/clock"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.uber.org/zap"
)

// registerPause is the pause between two attempts to register, or to list the registered
// proxies.
const registerPause = time.Second

// maxProxies bounds the registered proxies that are tracked. A client that may write below
// the prefix can register any number; the rest are ignored.
const maxProxies = 10_000

// clusterServer lists the proxies in place of the members, so that a client which syncs its
// endpoints stays with the proxies.
type clusterServer struct {
	pb.UnimplementedClusterServer
	up       pb.ClusterClient
	lg       *zap.Logger
	self     string // empty: list the members
	hostname string

	mu      sync.Mutex
	proxies map[string]*pb.Member // by key; guarded by mu
}

func newClusterServer(p *Proxy) *clusterServer {
	s := &clusterServer{up: pb.NewClusterClient(p.client.ActiveConnection()), lg: p.lg, self: p.o.AdvertiseClientURL,
		hostname: hostname(), proxies: map[string]*pb.Member{}}
	if s.self != "" && p.o.ResolverPrefix != "" {
		p.wg.Go(func() { s.follow(p.ctx, p.client, p.o.ResolverPrefix) })
	}
	return s
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

// MemberList returns the registered proxies, or this one alone.
func (s *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if s.self == "" {
		return s.up.MemberList(ctx, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.proxies) == 0 {
		return &pb.MemberListResponse{Members: []*pb.Member{{Name: s.hostname, ClientURLs: []string{s.self}}}}, nil
	}
	members := make([]*pb.Member, 0, len(s.proxies))
	for _, m := range s.proxies {
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b *pb.Member) int {
		return cmp.Or(cmp.Compare(a.ClientURLs[0], b.ClientURLs[0]), cmp.Compare(a.Name, b.Name))
	})
	return &pb.MemberListResponse{Members: members}, nil
}

func (s *clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return s.up.MemberAdd(ctx, r)
}

func (s *clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return s.up.MemberRemove(ctx, r)
}

func (s *clusterServer) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return s.up.MemberUpdate(ctx, r)
}

func (s *clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return s.up.MemberPromote(ctx, r)
}

// about is what a proxy registers with its address.
type about struct {
	Name string `json:"name"`
}

// follow keeps the list of proxies registered below prefix up to date.
func (s *clusterServer) follow(ctx context.Context, c *clientv3.Client, prefix string) {
	for ctx.Err() == nil {
		if err := s.followOnce(ctx, c, prefix); err != nil {
			s.lg.Warn("failed to establish endpoint watch", zap.String("prefix", prefix), zap.Error(err))
		}
		pause(ctx)
	}
}

func pause(ctx context.Context) {
	select {
	case <-clock.After(registerPause):
	case <-ctx.Done():
	}
}

func (s *clusterServer) followOnce(ctx context.Context, c *clientv3.Client, prefix string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	manager, err := endpoints.NewManager(c, prefix)
	if err != nil {
		return err
	}
	updates, err := manager.NewWatchChannel(ctx)
	if err != nil {
		return err
	}
	// The watch begins with all current registrations; removed ones are not among them.
	s.mu.Lock()
	clear(s.proxies)
	s.mu.Unlock()
	for list := range updates {
		s.update(list)
	}
	return nil
}

func (s *clusterServer) update(list []*endpoints.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range list {
		if u.Op == endpoints.Delete {
			delete(s.proxies, u.Key)
			continue
		}
		var a about
		// Metadata is deprecated, but etcd's proxy stores its name there
		if err := json.Unmarshal([]byte(fmt.Sprint(u.Endpoint.Metadata)), &a); err != nil {
			s.lg.Warn("a registration below the resolver prefix is not a proxy's", zap.String("key", u.Key), zap.Error(err))
			delete(s.proxies, u.Key)
			continue
		}
		if s.proxies[u.Key] == nil && len(s.proxies) >= maxProxies {
			s.lg.Warn("too many registrations below the resolver prefix", zap.String("key", u.Key), zap.Int("limit", maxProxies))
			continue
		}
		s.proxies[u.Key] = &pb.Member{Name: a.Name, ClientURLs: []string{u.Endpoint.Addr}}
	}
}

// register keeps this proxy registered, with a lease of its own, and registers it again if
// the lease is lost.
func (p *Proxy) register() {
	for p.ctx.Err() == nil {
		session, err := p.registerOnce()
		if err != nil {
			if p.ctx.Err() == nil {
				p.lg.Warn("failed to create a session", zap.Error(err))
			}
			pause(p.ctx)
			continue
		}
		select {
		case <-session.Done():
			p.lg.Warn("session expired; possible network partition or server restart")
			p.lg.Warn("creating a new session to rejoin")
		case <-p.ctx.Done():
		}
		session.Orphan() // Close revokes it
		pause(p.ctx)
	}
}

func (p *Proxy) registerOnce() (*concurrency.Session, error) {
	session, err := concurrency.NewSession(p.client, concurrency.WithTTL(p.o.ResolverTTL), concurrency.WithContext(p.ctx))
	if err != nil {
		return nil, err
	}
	manager, err := endpoints.NewManager(p.client, p.o.ResolverPrefix)
	if err == nil {
		name, _ := json.Marshal(about{hostname()})
		err = manager.AddEndpoint(p.ctx, p.o.ResolverPrefix+"/"+p.o.AdvertiseClientURL,
			endpoints.Endpoint{Addr: p.o.AdvertiseClientURL, Metadata: string(name)}, clientv3.WithLease(session.Lease()))
	}
	if err != nil {
		session.Orphan()
		ctx, cancel := context.WithTimeout(p.ctx, registerPause)
		defer cancel()
		_, _ = p.client.Revoke(ctx, session.Lease()) // otherwise it expires
		return nil, err
	}
	p.lg.Info("registered session with lease", zap.String("addr", p.o.AdvertiseClientURL), zap.Int("lease-ttl", p.o.ResolverTTL))
	return session, nil
}
