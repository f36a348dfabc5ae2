package server

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/replica"
)

// hang blocks the apply goroutine of a member until release is called.
func (n *node) hang() (release func()) {
	busy, done := make(chan struct{}), make(chan struct{})
	n.m.applier.work.Between(func() { close(busy); <-done })
	<-busy
	release = sync.OnceFunc(func() { close(done) })
	n.cluster.t.Cleanup(release)
	return release
}

// together starts membership changes at the same moment and returns their errors. Each passes
// the strict check at first, as n has applied none by then.
func together(t *testing.T, n *node, changes ...func() error) []error {
	t.Helper()
	release := n.hang()
	errs := make([]error, len(changes))
	var wg sync.WaitGroup
	for i, f := range changes {
		waiting := n.m.replica.props.Len()
		answered := make(chan struct{})
		wg.Go(func() { defer close(answered); errs[i] = f() })
		eventually(t, "the change is proposed", func() bool {
			select {
			case <-answered: // it was rejected, and the caller checks the reason
				return true
			default:
				return n.m.replica.props.Len() > waiting
			}
		})
	}
	release()
	wg.Wait()
	return errs
}

func strict(cfg *Config) { calm(cfg); cfg.StrictReconfig = true }

func connectedAll(t *testing.T, c *cluster) {
	t.Helper()
	c.leader()
	c.clk.ahead.Add(int64(6 * time.Second))
	for _, n := range c.nodes {
		for _, o := range c.nodes {
			eventually(t, "connected for 5 s", func() bool { return n.m.Members.connected(o.m.replica.id) })
		}
	}
}

// Both members of a cluster of two are removed at the same moment: one stays.
func TestRemoveBoth(t *testing.T) {
	c := newCluster(t, 2, strict)
	connectedAll(t, c)
	lead, other := c.leader(), c.follower()
	errs := together(t, lead,
		func() error { _, err := lead.m.Members.MemberRemove(background(t), other.m.replica.id); return err },
		func() error { _, err := lead.m.Members.MemberRemove(background(t), lead.m.replica.id); return err })
	if errs[0] != nil || !errors.Is(errs[1], errNotEnoughStarted) {
		t.Errorf("removals of two members at once: %v", errs)
	}
	if ids := lead.m.cluster.MemberIDs(); len(ids) != 1 || ids[0] != lead.m.replica.id || lead.m.replica.Err() != nil {
		t.Errorf("members %s, the last one ended with %v", ids, lead.m.replica.Err())
	}
	lead.put("k", "v")
}

// Without the strict check, the last member still stays.
func TestLastVoterStays(t *testing.T) {
	c := prepareCluster(t, 1, calm)
	core, logs := observer.New(zap.WarnLevel)
	c.opened = func(m *Member) { m.slow.fewLines = zap.New(core) }
	c.launch()
	n := c.nodes[0]
	if _, err := n.m.Members.MemberRemove(background(t), n.m.replica.id); !errors.Is(err, errNotEnoughStarted) {
		t.Errorf("removal of the only member: %v", err)
	}
	if got := logs.FilterMessage("rejecting member remove request; not enough healthy members").All(); len(got) == 0 ||
		got[0].ContextMap()["requested-member-remove-id"] != n.m.replica.id.String() {
		t.Errorf("logged %v", logs.All())
	}
	// Bypasses all checks before the proposal: the entry is in the log.
	cc := membership.RemoveChange(n.m.replica.id)
	cc.Id = new(n.m.replica.ids.Next())
	data, err := proto.Marshal(cc)
	if err != nil {
		t.Fatal(err)
	}
	p := &proposal.Pending{ID: cc.GetId(), Data: data, ConfChange: true}
	if err := n.m.replica.props.Admit(p, n.m.cfg.Clock.Now(), patience); err != nil {
		t.Fatal(err)
	}
	n.m.driver.event(func(in *replica.Input) {
		in.Then = append(in.Then, func() { n.m.driver.pipe.Core().Node().Propose([]raftnode.Entry{{Data: data, ConfChange: true}}) })
	})
	n.m.driver.event(func(*replica.Input) {}) // a step that collects the effects
	if res := <-p.Done(); !errors.Is(mapMembership(res.Err), errNotEnoughStarted) {
		t.Errorf("removal of the only member in the log: %v", res.Err)
	}
	n.put("k", "v")
	n.stop()
	n.mustStart()
	n.ready()
	if got := n.get("k"); got != "v" {
		t.Errorf("k is %q", got)
	}
}

// A second addition is rejected while the first member has not started, also if both were
// requested at once, through any member.
func TestAddTwo(t *testing.T) {
	for _, through := range []string{"leader", "follower"} {
		t.Run(through, func(t *testing.T) {
			c := newCluster(t, 2, strict)
			connectedAll(t, c)
			lead := c.leader()
			n := lead
			if through == "follower" {
				n = c.follower()
			}
			add := func(url string) func() error {
				return func() error { _, _, err := n.m.Members.MemberAdd(background(t), []string{url}, false); return err }
			}
			errs := together(t, n, add("http://x:1"), add("http://x:2"))
			if (errs[0] == nil) == (errs[1] == nil) {
				t.Fatalf("additions at once: %v", errs)
			}
			for _, err := range errs {
				if err != nil && !errors.Is(err, errNotEnoughStarted) && !errors.Is(err, rpctypes.ErrGRPCUnhealthy) {
					t.Errorf("the other addition: %v", err)
				}
			}
			if k := len(lead.m.cluster.Members()); k != 3 {
				t.Errorf("%d members, want 3", k)
			}
		})
	}
}

// An update also waits for the change before it; it is not lost.
func TestUpdateWaits(t *testing.T) {
	c := newCluster(t, 2, calm)
	lead, other := c.leader(), c.follower()
	errs := together(t, lead,
		func() error {
			_, _, err := lead.m.Members.MemberAdd(background(t), []string{"http://x:1"}, true)
			return err
		},
		func() error {
			_, err := lead.m.Members.MemberUpdate(background(t), other.m.replica.id, []string{other.url, "http://x:2"})
			return err
		})
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if x, _ := lead.m.cluster.Member(other.m.replica.id); len(x.PeerURLs) != 2 {
		t.Errorf("the member has the URLs %v", x.PeerURLs)
	}
}

// A promotion raises the quorum, so the strict check runs again when it is proposed: next to an
// addition, or after one that came first, the change that would lose the quorum is rejected with
// etcd's text. A second promotion fails because the member is not a learner any more.
func TestPromotionBesideOthers(t *testing.T) {
	for _, first := range []string{"addition", "promotion", "removal"} {
		t.Run(first, func(t *testing.T) {
			c := newCluster(t, 2, strict)
			connectedAll(t, c)
			lead := c.leader()
			n, added := c.join("learner", lead, true)
			n.mustStart()
			n.ready()
			connectedAll(t, c)
			lead = c.leader()
			for i := range 100 { // so that one entry that the learner lacks is less than a tenth of the log
				lead.put(fmt.Sprint("k", i), "v")
			}
			eventually(t, "the learner is in sync", func() bool {
				match := lead.m.Members.driver.progress(background(t))
				return match != nil && membership.LearnerInSync(ids.Index(match[lead.m.replica.id]), ids.Index(match[ids.Member(added.ID)]))
			})
			promote := func() error { _, err := lead.m.Members.MemberPromote(background(t), ids.Member(added.ID)); return err }
			add := func() error {
				_, _, err := lead.m.Members.MemberAdd(background(t), []string{"http://x:1"}, false)
				return err
			}
			remove := func() error { _, err := lead.m.Members.MemberRemove(background(t), ids.Member(added.ID)); return err }
			var errs []error
			var want error
			switch first {
			case "addition": // three voters, one not started; a fourth is too many for the started ones
				errs, want = together(t, lead, add, promote), nil
			case "promotion":
				errs, want = together(t, lead, promote, promote), rpctypes.ErrGRPCMemberNotLearner
			case "removal":
				errs, want = together(t, lead, remove, promote), rpctypes.ErrGRPCMemberNotFound
			}
			if errs[0] != nil || !errors.Is(errs[1], want) {
				t.Errorf("%v, want nil and %v", errs, want)
			}
			lead.put("k", "v")
			if err := lead.m.replica.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}
