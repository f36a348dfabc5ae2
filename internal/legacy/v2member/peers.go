package v2member

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// Reasons for rejecting a write of the v2 API. Clients get them as the cause of error 300.
var (
	ErrBeside = errors.New("etcdserver: the cluster has a member of etcd 3.6 or later, which does not store data of the v2 API: " +
		"replace it, or use the v3 API")
	ErrUnknown = errors.New("etcdserver: it is not known yet whether a member of the cluster stores data of the v2 API: start it, or remove it")
)

// keeping says whether a member is known to keep the data of the v2 API.
type keeping int

const (
	unknown keeping = iota
	kept            // a member of Quorate, or of etcd before 3.6
	dropped
)

// askAgain is how long a member that did not answer is not asked again.
const askAgain = time.Second

// peers caches the other members' answers. A member is asked again when there is a new
// connection to it: another program may have been started in its place. Without a
// connection its last answer stays valid; otherwise one member that is down would stop all
// writes.
type peers struct {
	asking chan struct{} // capacity 1: one caller asks, the others wait for the answer
	mu     sync.Mutex
	known  map[ids.Member]peer
}

type peer struct {
	keeps  keeping
	since  time.Time // when the connection was established
	failed time.Time // the last time that it did not answer
}

func newPeers() *peers {
	return &peers{asking: make(chan struct{}, 1), known: map[ids.Member]peer{}}
}

func (p *peers) lookup(id ids.Member) peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[id]
}

// allows rejects writes of the v2 API in clusters in which some member would not keep them:
// as a leader, or by the snapshots that it sends, it would lose them. In a cluster whose
// version is below 3.6, members that have not been reached yet are assumed to be of that
// release.
func (s *Service) allows(ctx context.Context) error {
	v := s.o.Cluster.Version()
	old := v.Less(membership.FirstWithoutV2)
	var err error
	for _, x := range s.o.Cluster.Members() {
		if x.ID == s.host.MemberID() {
			continue
		}
		keeps, aerr := s.keeps(ctx, x)
		switch {
		case aerr != nil:
			return aerr
		case keeps == dropped:
			return ErrBeside
		case keeps == unknown && !old && len(x.ClientURLs) > 0: // the member has no client URLs: it has not started yet
			err = ErrUnknown
		}
	}
	return err
}

func (s *Service) keeps(ctx context.Context, x membership.Member) (keeping, error) {
	current := func() (peer, time.Time, bool) {
		p, since := s.peers.lookup(x.ID), s.host.ActiveSince(x.ID)
		switch {
		case p.keeps != unknown && (since.IsZero() || since.Equal(p.since)):
			return p, since, true
		case s.o.Clock.Now().Sub(p.failed) < askAgain:
			return p, since, true
		}
		return p, since, false
	}
	if p, _, ok := current(); ok {
		return p.keeps, nil
	}
	select {
	case s.peers.asking <- struct{}{}:
		defer func() { <-s.peers.asking }()
	case <-ctx.Done():
		return unknown, ctx.Err()
	case <-s.host.Stopped():
		return unknown, rpctypes.ErrGRPCStopped
	}
	p, since, ok := current()
	if ok {
		return p.keeps, nil
	}
	asked, err := s.host.Version(ctx, x.PeerURLs)
	switch v, perr := membership.ParseVersion(asked.Server); {
	case ctx.Err() != nil:
		return unknown, ctx.Err() // it may well have answered a moment later
	case err != nil || perr != nil:
		p.failed = s.o.Clock.Now()
	case asked.Quorate != "" || v.Less(membership.FirstWithoutV2):
		p = peer{keeps: kept, since: since}
	default:
		p = peer{keeps: dropped, since: since}
	}
	s.peers.mu.Lock()
	s.peers.known[x.ID] = p // bounded by the number of members
	s.peers.mu.Unlock()
	return p.keeps, nil
}
