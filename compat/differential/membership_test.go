package differential

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"quorate/compat/harness"
)

// membershipLimit bounds each wait, generously because the machine may be busy.
const membershipLimit = 60 * time.Second

// patient are flags with which members keep their leader on a busy machine too.
var patient = []string{"--heartbeat-interval=200", "--election-timeout=3000"}

// trio is a cluster of three and the answers it has given so far.
type trio struct {
	ctx      context.Context
	cluster  *harness.Cluster
	sessions []*session
	texts    *strings.Replacer // addresses and ids to names
	pairs    []string          // applied to texts
	lines    []string
}

func (c *trio) rename(old, name string) {
	c.pairs = append(c.pairs, old, name)
	c.texts = strings.NewReplacer(c.pairs...)
}

func (c *trio) known(id uint64, name string) {
	for _, s := range c.sessions {
		s.name(id, name)
	}
	c.rename(fmt.Sprintf("%x", id), name)
}

// say records the outcome of a call. Headers are left out: their terms, and which member answers, do not concern
// membership.
func (c *trio) say(what string, members []*pb.Member, err error) {
	line := what + ": "
	if err != nil {
		st := status.Convert(err)
		line += st.Code().String() + " " + st.Message()
	} else {
		var list []string
		for _, m := range members {
			list = append(list, c.sessions[0].number(m.ID)+fmt.Sprintf("{%s %v %v %t}", m.Name, m.PeerURLs, len(m.ClientURLs) > 0, m.IsLearner))
		}
		slices.SortFunc(list, func(a, b string) int { return strings.Compare(c.texts.Replace(a), c.texts.Replace(b)) })
		line += "ok " + strings.Join(list, " ")
	}
	c.lines = append(c.lines, c.texts.Replace(oneBlank(line)))
}

// try repeats f while the cluster has no leader or considers itself unhealthy, as it does at first, and while it
// has not yet learned of the previous change.
func (c *trio) try(f func(ctx context.Context) error) error {
	deadline := time.Now().Add(membershipLimit)
	for {
		ctx, cancel := context.WithTimeout(c.ctx, opTimeout)
		err := f(ctx)
		cancel()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		text := status.Convert(err).Message()
		if !slices.ContainsFunc([]string{"unhealthy cluster", "leader changed", "no leader", "timed out", "error while dialing", "connection"},
			func(s string) bool { return strings.Contains(strings.ToLower(text), s) }) && status.Code(err) != codes.DeadlineExceeded {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *trio) member(i int) pb.ClusterClient { return c.sessions[i].cluster }

func (c *trio) add(i int, learner bool, urls ...string) (resp *pb.MemberAddResponse, err error) {
	err = c.try(func(ctx context.Context) (err error) {
		resp, err = c.member(i).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls, IsLearner: learner})
		return err
	})
	c.say(fmt.Sprintf("add %v, learner %t", urls, learner), resp.GetMembers(), err)
	return resp, err
}

func (c *trio) remove(i int, id uint64) {
	var resp *pb.MemberRemoveResponse
	err := c.try(func(ctx context.Context) (err error) {
		resp, err = c.member(i).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	c.say("remove "+c.sessions[0].number(id), resp.GetMembers(), err)
}

func (c *trio) promote(i int, id uint64) {
	var resp *pb.MemberPromoteResponse
	err := c.try(func(ctx context.Context) (err error) {
		resp, err = c.member(i).MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		return err
	})
	c.say("promote "+c.sessions[0].number(id), resp.GetMembers(), err)
}

func (c *trio) update(i int, id uint64, urls ...string) {
	var resp *pb.MemberUpdateResponse
	err := c.try(func(ctx context.Context) (err error) {
		resp, err = c.member(i).MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls})
		return err
	})
	c.say(fmt.Sprintf("update %s to %v", c.sessions[0].number(id), urls), resp.GetMembers(), err)
}

// leader waits until all agree on a leader, and returns its position.
func (c *trio) leader() (int, error) {
	var at int
	err := c.eventually(func(ctx context.Context) error {
		var ids []uint64
		for i, s := range c.sessions {
			if !c.cluster.Members[i].Running() {
				continue
			}
			r, err := s.maint.Status(ctx, &pb.StatusRequest{})
			if err != nil {
				return err
			}
			ids = append(ids, r.Leader)
			if r.Leader == r.Header.MemberId {
				at = i
			}
		}
		if len(slices.Compact(slices.Clone(ids))) != 1 || ids[0] == 0 || c.sessions[at].member != ids[0] {
			return fmt.Errorf("leaders %x", ids)
		}
		return nil
	})
	return at, err
}

func (c *trio) eventually(f func(ctx context.Context) error) error {
	deadline := time.Now().Add(membershipLimit)
	for {
		ctx, cancel := context.WithTimeout(c.ctx, opTimeout)
		err := f(ctx)
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// working waits until every running member takes part in a write.
func (c *trio) working(key string) error {
	for i, s := range c.sessions {
		if !c.cluster.Members[i].Running() {
			continue
		}
		err := c.eventually(func(ctx context.Context) error {
			_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(key)})
			return err
		})
		if err != nil {
			return fmt.Errorf("put on member %d: %w", i, err)
		}
	}
	return nil
}

// membership runs the script on three members of one kind.
func membership(ctx context.Context, dir, binary string) (*trio, error) {
	c := &trio{ctx: ctx, texts: strings.NewReplacer()}
	start, cancel := context.WithTimeout(ctx, membershipLimit)
	defer cancel()
	var err error
	if c.cluster, err = harness.StartCluster(start, dir, []string{binary, binary, binary}, patient...); err != nil {
		return nil, err
	}
	defer c.cluster.Kill()
	spare, err := harness.FreeAddrs(4)
	if err != nil {
		return nil, err
	}
	var url []string
	for i, a := range spare {
		url = append(url, "http://"+a)
		c.rename(url[i], fmt.Sprintf("http://spare%d", i))
	}
	for _, m := range c.cluster.Members {
		s, err := newSession(m.ClientAddr())
		if err != nil {
			return nil, err
		}
		defer s.close()
		r, err := s.cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		if err != nil {
			return nil, err
		}
		s.header(r.Header)
		c.sessions = append(c.sessions, s)
	}
	if err := c.working("begin"); err != nil { // and have published their names
		return nil, err
	}
	lead, err := c.leader()
	if err != nil {
		return nil, err
	}
	follower, third := (lead+1)%3, (lead+2)%3
	// Which of them leads is chance; from here on they are named by their roles at this point.
	for role, i := range map[string]int{"first": lead, "second": follower, "third": third} {
		c.rename(c.cluster.Members[i].PeerURL(), "http://"+role)
		c.rename("{"+c.cluster.Members[i].Name()+" ", "{"+role+" ")
		c.known(c.sessions[i].member, role)
	}
	list, err := c.member(0).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	c.say("list", list.GetMembers(), err)
	peer := func(i int) string { return c.cluster.Members[i].PeerURL() }
	leaderID, followerID, thirdID := c.sessions[lead].member, c.sessions[follower].member, c.sessions[third].member

	// Learners.
	c.add(follower, true, peer(third))
	c.add(follower, true)
	c.add(follower, true, "spare")
	c.add(follower, true, "http://127.0.0.1")
	c.add(follower, false, "ftp://127.0.0.1:1")
	added, err := c.add(follower, true, url[0])
	if err != nil {
		return c, fmt.Errorf("add a learner: %w", err)
	}
	learner := added.Member.ID
	c.known(learner, "learner")
	c.lines = c.lines[:len(c.lines)-1] // its id had no name yet
	list, err = c.member(follower).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	c.say("list", list.GetMembers(), err)
	c.add(lead, true, url[1])
	for _, i := range []int{lead, follower} {
		c.promote(i, learner)
		c.promote(i, thirdID)
		c.promote(i, 4711)
	}
	c.update(lead, learner, url[2])
	c.update(follower, learner, peer(third))
	c.update(lead, 4711, url[1])

	// Leadership.
	move := func(i int, to uint64) {
		// Anything but an answer would make it a different question the second time.
		octx, cancel := context.WithTimeout(ctx, membershipLimit)
		defer cancel()
		_, err := c.sessions[i].maint.MoveLeader(octx, &pb.MoveLeaderRequest{TargetID: to})
		c.say(fmt.Sprintf("move leadership to %s at leader %t", c.sessions[0].number(to), i == lead), nil, err)
	}
	move(follower, thirdID)
	move(lead, learner)
	move(lead, 4711)
	move(lead, leaderID)
	move(lead, followerID)
	if now, err := c.leader(); err != nil || now != follower {
		return c, errors.Join(fmt.Errorf("member %d leads, not %d", now, follower), err)
	}
	lead, follower = follower, lead
	c.remove(lead, 4711)
	c.remove(lead, learner)
	c.remove(follower, learner)
	c.promote(lead, learner)
	c.update(lead, learner, url[2])

	// Downgrades that do not begin.
	for _, r := range []*pb.DowngradeRequest{
		{Action: pb.DowngradeRequest_VALIDATE, Version: "3.6"}, {Action: pb.DowngradeRequest_VALIDATE, Version: "3.6.0"},
		{Action: pb.DowngradeRequest_VALIDATE, Version: "3.5"}, {Action: pb.DowngradeRequest_VALIDATE, Version: "3.7"},
		{Action: pb.DowngradeRequest_ENABLE, Version: "3.8"}, {Action: pb.DowngradeRequest_ENABLE, Version: "x"},
		{Action: pb.DowngradeRequest_ENABLE}, {Action: pb.DowngradeRequest_CANCEL}, {Action: 9, Version: "3.6"},
	} {
		for _, i := range []int{lead, follower} {
			var resp *pb.DowngradeResponse
			err := c.try(func(ctx context.Context) (err error) { resp, err = c.sessions[i].maint.Downgrade(ctx, r); return err })
			c.say(fmt.Sprintf("downgrade %s %q gives %q", r.Action, r.Version, resp.GetVersion()), nil, err)
		}
	}

	// A member moves to another port.
	c.update(lead, thirdID, url[3])
	if err := c.cluster.Members[third].Kill(); err != nil {
		return c, err
	}
	c.cluster.Members[third].SetArgs(append(patient, "--listen-peer-urls="+url[3])...)
	if err := c.cluster.Members[third].Restart(); err != nil {
		return c, err
	}
	if err := c.working("moved"); err != nil {
		return c, err
	}
	list, err = c.member(third).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	c.say("list", list.GetMembers(), err)

	// With one of three down, nothing may be risked.
	if lead, err = c.leader(); err != nil {
		return c, err
	}
	if lead == third {
		move(lead, c.sessions[follower].member)
		c.lines = c.lines[:len(c.lines)-1] // whether that happened is chance
		if lead, err = c.leader(); err != nil {
			return c, err
		}
	}
	if err := c.cluster.Members[third].Kill(); err != nil {
		return c, err
	}
	other := 3 - lead - third
	refused := func(what string, f func(ctx context.Context) error) {
		var err error
		_ = c.eventually(func(ctx context.Context) error { // until the loss is detected
			if err = f(ctx); err == nil || !strings.Contains(err.Error(), "unhealthy cluster") {
				return fmt.Errorf("%s: %v", what, err)
			}
			return nil
		})
		c.say(what, nil, err)
	}
	refused("remove a member that lives", func(ctx context.Context) error {
		_, err := c.member(lead).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: c.sessions[other].member})
		return err
	})
	refused("add a voter", func(ctx context.Context) error {
		_, err := c.member(other).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{url[0]}})
		return err
	})

	// All stop and restart, in a different order.
	c.cluster.Stop()
	for _, i := range []int{third, lead, other} {
		if err := c.cluster.Members[i].Restart(); err != nil {
			return c, err
		}
	}
	if err := c.working("again"); err != nil {
		return c, err
	}
	list, err = c.member(0).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	c.say("list", list.GetMembers(), err)
	return c, nil
}

// Clusters of three of each kind return the same about members, leaders and downgrades.
func TestMembershipAlike(t *testing.T) {
	kinds := []string{*flagA, *flagB}
	for _, p := range kinds {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("server binary: %v (build both first: make compat)", err)
		}
	}
	var trios [2]*trio
	var errs [2]error
	var wg sync.WaitGroup
	for i, binary := range kinds {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		wg.Go(func() { trios[i], errs[i] = membership(t.Context(), dir, binary) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%s: %v", kinds[i], err)
			if trios[i] != nil {
				t.Logf("so far:\n%s", strings.Join(trios[i].lines, "\n"))
			}
		}
	}
	if t.Failed() {
		return
	}
	a, b := trios[0].lines, trios[1].lines
	for i := range max(len(a), len(b)) {
		x, y := "(nothing)", "(nothing)"
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			t.Errorf("etcd: %s\nours: %s", x, y)
		}
	}
	t.Logf("%d answers:\n%s", len(a), strings.Join(a, "\n"))
}
