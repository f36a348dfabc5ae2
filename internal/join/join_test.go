package join

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"quorate/internal/ids"
)

// fake is a minimal cluster. The next calls return the errors in fail instead.
type fake struct {
	members []*pb.Member
	fail    []error // one for each following addition; nil lets it succeed
	lost    bool    // the next addition succeeds, but its response is lost
	adds    int
}

func (f *fake) MemberList(context.Context, ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
	return &clientv3.MemberListResponse{Members: f.members}, nil
}

func (f *fake) MemberAddAsLearner(_ context.Context, urls []string) (*clientv3.MemberAddResponse, error) {
	if len(f.fail) > 0 {
		err := f.fail[0]
		f.fail = f.fail[1:]
		if err != nil {
			return nil, err
		}
	}
	f.adds++
	m := &pb.Member{ID: uint64(100 + f.adds), PeerURLs: urls, IsLearner: true}
	f.members = append(f.members, m)
	if f.lost {
		f.lost = false
		return nil, context.DeadlineExceeded
	}
	return &clientv3.MemberAddResponse{Member: m, Members: f.members}, nil
}

func enter(f *fake, name string, urls ...string) (string, error) {
	pauses := 0
	e := &entry{Options: Options{Endpoints: []string{"http://a:2379"}, Name: name, PeerURLs: urls, Logger: zap.NewNop()}, cluster: f,
		wait: func(context.Context, time.Duration) error {
			if pauses++; pauses > 5 {
				return context.DeadlineExceeded
			}
			return nil
		}}
	initial, err := e.run(context.Background())
	var out []string
	for _, m := range initial {
		out = append(out, m.Name+"="+strings.Join(m.PeerURLs, "+"))
	}
	return strings.Join(out, ","), err
}

func running() []*pb.Member {
	return []*pb.Member{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a:2380"}},
		{ID: 2, Name: "b", PeerURLs: []string{"http://b:2380", "http://b2:2380"}},
	}
}

const both = "a=http://a:2380,b=http://b:2380+http://b2:2380"

func TestEnter(t *testing.T) {
	unavailable := rpctypes.ErrNoLeader
	for _, tc := range []struct {
		name    string
		members []*pb.Member // in addition to a and b
		fail    []error
		lost    bool
		as      string
		urls    string
		want    string
		adds    int
		err     string
	}{
		{name: "new", as: "c", urls: "http://c:2380", want: both + ",c=http://c:2380", adds: 1},
		{name: "added before", members: []*pb.Member{{ID: 9, PeerURLs: []string{"http://c:2380"}, IsLearner: true}},
			as: "c", urls: "http://c:2380", want: both + ",c=http://c:2380"},
		{name: "added before, two URLs in another order", members: []*pb.Member{{ID: 9, PeerURLs: []string{"http://c:1", "http://c:2"}}},
			as: "c", urls: "http://c:2 http://c:1", want: both + ",c=http://c:1+http://c:2"},
		{name: "another one that has not started", members: []*pb.Member{{ID: 0xabc, PeerURLs: []string{"http://d:2380"}}},
			as: "c", urls: "http://c:2380", want: both + ",member-abc=http://d:2380,c=http://c:2380", adds: 1},
		{name: "obstacles that pass", fail: []error{rpctypes.ErrTooManyLearners, rpctypes.ErrUnhealthy, unavailable, context.DeadlineExceeded},
			as: "c", urls: "http://c:2380", want: both + ",c=http://c:2380", adds: 1},
		{name: "the answer was lost", lost: true, as: "c", urls: "http://c:2380", want: both + ",c=http://c:2380", adds: 1},
		{name: "an obstacle that stays", fail: []error{rpctypes.ErrTooManyLearners, rpctypes.ErrTooManyLearners, rpctypes.ErrTooManyLearners,
			rpctypes.ErrTooManyLearners, rpctypes.ErrTooManyLearners, rpctypes.ErrTooManyLearners}, as: "c", urls: "http://c:2380", err: "another member is joining"},
		{name: "not allowed", fail: []error{rpctypes.ErrPermissionDenied}, as: "c", urls: "http://c:2380", err: "permission denied"},
		{name: "its data is gone", as: "b", urls: "http://b:2380 http://b2:2380", err: "etcdctl member remove 2"},
		{name: "shares a URL", as: "c", urls: "http://b:2380", err: "give each member its own --initial-advertise-peer-urls"},
		{name: "shares a name", as: "b", urls: "http://c:2380", err: "give this member another --name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fake{members: append(running(), tc.members...), fail: tc.fail, lost: tc.lost}
			got, err := enter(f, tc.as, strings.Fields(tc.urls)...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), "--join") {
					t.Errorf("error %v, want one that names --join and says %q", err, tc.err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if got != tc.want || f.adds != tc.adds {
				t.Errorf("got %s after %d additions, want %s after %d", got, f.adds, tc.want, tc.adds)
			}
		})
	}
}

// catchingUp is a learner that is ready after a few attempts.
type catchingUp struct{ left int }

func (c *catchingUp) MemberID() ids.Member { return 7 }
func (c *catchingUp) IsLearner() bool      { return c.left > 0 }
func (c *catchingUp) MemberPromote(_ context.Context, id ids.Member) ([]*pb.Member, error) {
	if id != 7 {
		return nil, fmt.Errorf("asked for %d", id)
	}
	if c.left--; c.left > 0 {
		return nil, rpctypes.ErrGRPCLearnerNotReady
	}
	return nil, nil
}

type stopping struct{ catchingUp }

func (*stopping) MemberPromote(context.Context, ids.Member) ([]*pb.Member, error) {
	return nil, rpctypes.ErrGRPCStopped
}

func TestPromote(t *testing.T) {
	pauses := 0
	count := func(context.Context, time.Duration) error { pauses++; return nil }
	m := &catchingUp{left: 4}
	if err := promote(context.Background(), m, zap.NewNop(), count); err != nil || m.left != 0 || pauses != 4 {
		t.Errorf("%v, %d left after %d pauses", err, m.left, pauses)
	}
	if err := promote(context.Background(), m, zap.NewNop(), count); err != nil || pauses != 4 {
		t.Errorf("a voter asks: %v, %d pauses", err, pauses)
	}
	gone := errors.New("gone")
	if err := promote(context.Background(), &catchingUp{left: 4}, zap.NewNop(), func(context.Context, time.Duration) error { return gone }); err != gone {
		t.Errorf("ends with %v", err)
	}
	if err := promote(context.Background(), &stopping{catchingUp{4}}, zap.NewNop(), count); !errors.Is(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("a member that stops: %v", err)
	}
}
