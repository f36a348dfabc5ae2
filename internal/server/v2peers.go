package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/membership"
)

// Why a write of the v2 API is refused. The texts reach the client as the cause of
// error 300.
var (
	errV2Beside = errors.New("etcdserver: the cluster has a member of etcd 3.6 or later, which keeps no data of the v2 API: " +
		"replace it, or use the v3 API")
	errV2Unknown = errors.New("etcdserver: a member of the cluster has not said yet whether it keeps data of the v2 API: start it, or remove it")
)

// keepsV2 is what is known of a member: whether it keeps the data of the v2 API.
type keepsV2 int

const (
	v2Unknown keepsV2 = iota
	v2Kept            // one of ours, or of etcd before 3.6
	v2Dropped
)

// v2AskAgain is how long a member that did not answer is not asked again.
const v2AskAgain = time.Second

// v2Peers remembers what the other members have said. A member is asked again when
// the connection to it is a new one: it may have been started as another program.
// While there is none, what it was before holds: otherwise one member that is down
// would end the writes of all.
type v2Peers struct {
	asking chan struct{} // capacity 1: one caller asks, the others wait for the answer
	mu     sync.Mutex
	known  map[uint64]v2Peer
}

type v2Peer struct {
	keeps  keepsV2
	since  time.Time // the beginning of the connection
	failed time.Time // the last time that it did not answer
}

func newV2Peers() *v2Peers {
	return &v2Peers{asking: make(chan struct{}, 1), known: map[uint64]v2Peer{}}
}

func (p *v2Peers) lookup(id uint64) v2Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[id]
}

// allowsV2 refuses writes of the v2 API in clusters where a member would not keep
// them: what it leads or hands on would be without them. In a cluster whose version
// is below 3.6 members that nobody has heard of are taken to be of that release.
func (s *V2) allowsV2(ctx context.Context) error {
	v := s.cluster.Version()
	old := v.Less(membership.FirstWithoutV2)
	var err error
	for _, x := range s.cluster.Members() {
		if x.ID == s.replica.id {
			continue
		}
		keeps, aerr := s.v2Keeps(ctx, x)
		switch {
		case aerr != nil:
			return aerr
		case keeps == v2Dropped:
			return errV2Beside
		case keeps == v2Unknown && !old && len(x.ClientURLs) > 0: // without them it has not started yet
			err = errV2Unknown
		}
	}
	return err
}

func (s *V2) v2Keeps(ctx context.Context, x membership.Member) (keepsV2, error) {
	current := func() (v2Peer, time.Time, bool) {
		p, since := s.v2Peers.lookup(x.ID), s.tr.ActiveSince(x.ID)
		switch {
		case p.keeps != v2Unknown && (since.IsZero() || since.Equal(p.since)):
			return p, since, true
		case s.cfg.Clock.Now().Sub(p.failed) < v2AskAgain:
			return p, since, true
		}
		return p, since, false
	}
	if p, _, ok := current(); ok {
		return p.keeps, nil
	}
	select {
	case s.v2Peers.asking <- struct{}{}:
		defer func() { <-s.v2Peers.asking }()
	case <-ctx.Done():
		return v2Unknown, ctx.Err()
	case <-s.replica.stop:
		return v2Unknown, rpctypes.ErrGRPCStopped
	}
	p, since, ok := current()
	if ok {
		return p.keeps, nil
	}
	asked, err := s.peers.Version(ctx, x.PeerURLs, versionTimeout)
	switch v, perr := membership.ParseVersion(asked.Server); {
	case ctx.Err() != nil:
		return v2Unknown, ctx.Err() // it may well have answered a moment later
	case err != nil || perr != nil:
		p.failed = s.cfg.Clock.Now()
	case asked.Quorate != "" || v.Less(membership.FirstWithoutV2):
		p = v2Peer{keeps: v2Kept, since: since}
	default:
		p = v2Peer{keeps: v2Dropped, since: since}
	}
	s.v2Peers.mu.Lock()
	s.v2Peers.known[x.ID] = p // as many as there have been members
	s.v2Peers.mu.Unlock()
	return p.keeps, nil
}
