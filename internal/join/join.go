// Package join adds a member to a running cluster: the implementation of --join.
//
// In: client URLs of the cluster, and the name and peer URLs of the member.
// Out: the initial cluster to start the member with (Enter), and later its
// promotion from learner to voter (Promote).
//
// Always true: each step first queries the cluster and continues with a member
// added by an earlier attempt, so after a crash between any two steps a restart
// is enough. A member joins as a learner: until it has caught up, it does not
// count towards the quorum.
package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/membership"
)

const (
	// patience is how long Enter retries before it gives up.
	patience = 2 * time.Minute
	// callTimeout bounds one request to the cluster.
	callTimeout = 10 * time.Second
	// pause is the interval between attempts, reminder that between log lines
	// about the same obstacle.
	pause    = time.Second
	reminder = 10 * time.Second
)

// Options describes the member and the cluster it joins.
type Options struct {
	Endpoints []string    // client URLs of the cluster
	TLS       *tls.Config // to dial https endpoints with, or nil
	Name      string
	PeerURLs  []string
	Logger    *zap.Logger
}

// clusterAPI is the part of the client API that Enter needs; clientv3.Cluster
// implements it.
type clusterAPI interface {
	MemberList(context.Context, ...clientv3.OpOption) (*clientv3.MemberListResponse, error)
	MemberAddAsLearner(context.Context, []string) (*clientv3.MemberAddResponse, error)
}

// Enter adds the member to the cluster as a learner, unless an earlier attempt
// has, and returns the initial cluster to start it with. It retries temporary
// errors (no leader, another learner) for up to two minutes.
func Enter(ctx context.Context, o Options) ([]membership.InitialMember, error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: o.TLS, DialTimeout: callTimeout, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("--join %s: %w", strings.Join(o.Endpoints, ","), err)
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	e := &entry{Options: o, cluster: cli, wait: sleep}
	return e.run(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := clock.NewTimer(clock.System, d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// entry is one call of Enter.
type entry struct {
	Options
	cluster clusterAPI
	wait    func(context.Context, time.Duration) error
	told    int // attempts until the obstacle is logged again
}

func (e *entry) run(ctx context.Context) ([]membership.InitialMember, error) {
	for {
		initial, err := e.attempt(ctx)
		if err == nil {
			return initial, nil
		}
		if !passes(err) {
			return nil, fmt.Errorf("--join %s: %w", strings.Join(e.Endpoints, ","), err)
		}
		if e.told == 0 {
			e.Logger.Warn("cannot join the cluster yet; retrying", zap.Strings("join", e.Endpoints), zap.Error(err))
			e.told = int(reminder / pause)
		}
		e.told--
		if e.wait(ctx, pause) != nil {
			return nil, fmt.Errorf("--join %s: gave up: %w; it is safe to start this member again", strings.Join(e.Endpoints, ","), explain(err))
		}
	}
}

// attempt lists the members and adds this one if necessary. If the response to
// the addition is lost, the list of the next attempt includes it.
func (e *entry) attempt(ctx context.Context) ([]membership.InitialMember, error) {
	members, err := e.list(ctx)
	if err != nil {
		return nil, err
	}
	initial, added, err := place(members, e.Name, e.PeerURLs)
	if err != nil || added != nil {
		if added != nil {
			e.Logger.Info("this member was already added to the cluster; continuing",
				zap.Stringer("member-id", ids.Member(added.ID)), zap.Bool("learner", added.IsLearner))
		}
		return initial, err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := e.cluster.MemberAddAsLearner(call, e.PeerURLs)
	if err != nil {
		return nil, err
	}
	e.Logger.Info("added this member to the cluster as a learner", zap.String("name", e.Name),
		zap.Stringer("member-id", ids.Member(resp.Member.ID)), zap.Strings("peer-urls", e.PeerURLs))
	initial, added, err = place(resp.Members, e.Name, e.PeerURLs)
	if err == nil && added == nil {
		err = errors.New("the cluster has added this member but does not list it")
	}
	return initial, err
}

func (e *entry) list(ctx context.Context) ([]*pb.Member, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := e.cluster.MemberList(call)
	if err != nil {
		return nil, err
	}
	return resp.Members, nil
}

// place finds the member among those of the cluster by its peer URLs, and returns
// the initial cluster with the member under its name. added is nil if the member
// was not added yet. A conflict with another member is an error that says what to
// do.
func place(members []*pb.Member, name string, urls []string) (initial []membership.InitialMember, added *pb.Member, err error) {
	for _, m := range members {
		id := ids.Member(m.ID).String()
		switch {
		case sameSet(m.PeerURLs, urls):
			if m.Name != "" {
				return nil, nil, fmt.Errorf("member %s (%s) has these peer URLs and has run before, but its data is not here: "+
					"point --data-dir to it, or remove that member with 'etcdctl member remove %s' and start again", id, m.Name, id)
			}
			added = m
			initial = append(initial, membership.InitialMember{Name: name, PeerURLs: m.PeerURLs})
			continue
		case overlap(m.PeerURLs, urls):
			return nil, nil, fmt.Errorf("member %s has peer URLs %s, of which this member advertises %s: give each member its own --initial-advertise-peer-urls",
				id, strings.Join(m.PeerURLs, ","), strings.Join(urls, ","))
		case m.Name == name:
			return nil, nil, fmt.Errorf("member %s is called %q already and has other peer URLs (%s): give this member another --name",
				id, name, strings.Join(m.PeerURLs, ","))
		}
		other := m.Name
		if other == "" {
			other = "member-" + id // added, never started: only its URLs matter
		}
		initial = append(initial, membership.InitialMember{Name: other, PeerURLs: m.PeerURLs})
	}
	return initial, added, nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(u string) bool { return slices.Contains(b, u) })
}

// passes reports whether an error is temporary, or the response to an addition
// that was already made.
func passes(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		switch known {
		case rpctypes.ErrTooManyLearners, rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted,
			rpctypes.ErrMemberExist, rpctypes.ErrPeerURLExist, rpctypes.ErrNoLeader, rpctypes.ErrTooManyRequests:
			return true
		}
		return known.Code() == codes.Unavailable
	}
	c := status.Code(err)
	return c == codes.Unavailable || c == codes.DeadlineExceeded
}

// explain adds a hint about the solution to an obstacle that did not go
// away.
func explain(err error) error {
	var known rpctypes.EtcdError
	switch {
	case errors.As(err, &known) && known == rpctypes.ErrTooManyLearners:
		return fmt.Errorf("%w (another member is joining; 'etcdctl member list' shows it as a learner)", err)
	case errors.As(err, &known) && (known == rpctypes.ErrUnhealthy || known == rpctypes.ErrMemberNotEnoughStarted):
		return fmt.Errorf("%w (a member of the cluster is down; 'etcdctl endpoint health --cluster' shows which)", err)
	case status.Code(err) == codes.Unavailable, errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w (no answer: is it the client URL of a running member, and is the port open?)", err)
	}
	return err
}

// Learner is the member that Promote waits for; server.Member implements
// it.
type Learner interface {
	MemberID() ids.Member
	IsLearner() bool
	MemberPromote(ctx context.Context, id ids.Member) ([]*pb.Member, error)
}

// Promote requests the promotion of the member until it is a voter, stops, or ctx is
// done. For a voter it returns immediately. Meanwhile it logs every 10 s what it is
// waiting for.
func Promote(ctx context.Context, m Learner, lg *zap.Logger) error {
	return promote(ctx, m, lg, sleep)
}

func promote(ctx context.Context, m Learner, lg *zap.Logger, wait func(context.Context, time.Duration) error) error {
	told := 0
	for m.IsLearner() {
		_, err := m.MemberPromote(ctx, m.MemberID())
		if errors.Is(err, rpctypes.ErrGRPCStopped) {
			return err
		}
		if err != nil && told == 0 {
			lg.Info("this member is a learner and is catching up",
				zap.Stringer("member-id", m.MemberID()), zap.String("waits-for", err.Error()))
			told = int(reminder / pause)
		}
		told--
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
	lg.Info("this member is a voting member of the cluster", zap.Stringer("member-id", m.MemberID()))
	return nil
}
