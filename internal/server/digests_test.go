package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/digest"
	"quorate/internal/ids"
)

// often compares the digests every few milliseconds.
func often(cfg *Config) {
	calm(cfg)
	cfg.Checks.Digests = 10 * time.Millisecond
}

// misapplies makes the member put another value under one key than its log says, and returns
// the index at which it did.
func (n *node) misapplies(key, value string) *atomic.Uint64 {
	at := new(atomic.Uint64)
	n.m.applier.noteApplied = func(e *apply.Entry) {
		req, err := command.Decode(e.Data)
		if err != nil || string(req.GetPut().GetKey()) != key {
			return
		}
		req.Put.Value = []byte(value)
		e.Req = req
		at.Store(e.GetIndex())
	}
	return at
}

// founded starts a cluster in which the members wrong put another value under the key "bad"
// than the others.
func founded(t *testing.T, size int, wrong ...int) (*cluster, []*atomic.Uint64) {
	c := prepareCluster(t, size, often)
	c.diverges = true
	at := make([]*atomic.Uint64, size)
	c.opened = func(m *Member) {
		for i, n := range c.nodes {
			for _, w := range wrong {
				if w == i && m.cfg.Name == n.name {
					n.m = m
					at[i] = n.misapplies("bad", fmt.Sprint("of ", i))
				}
			}
		}
	}
	c.launch()
	return c, at
}

// accused waits for the alarm about a member, and for the leader's report of the range in
// which each of the members differs.
func (c *cluster) accused(alarm ids.Member, than string, suspects map[ids.Member]*atomic.Uint64) {
	c.t.Helper()
	c.alarms(&pb.AlarmMember{MemberID: uint64(alarm), Alarm: pb.AlarmType_CORRUPT})
	eventually(c.t, "the status of the leader names them", func() bool {
		st, err := c.leader().m.Maintenance.Status(context.Background())
		if err != nil {
			c.t.Fatal(err)
		}
		all := strings.Join(st.Errors, "\n")
		for id, written := range suspects {
			at := written.Load() // 0 until that member has applied the entry
			if !strings.Contains(all, fmt.Sprintf("memberID:%d wrote different records than %s for an entry after %d, up to %d", id, than, at-1, at)) {
				return false
			}
		}
		return strings.Contains(all, fmt.Sprintf("memberID:%d alarm:CORRUPT", alarm))
	})
}

func TestDigestNamesTheMember(t *testing.T) {
	c, at := founded(t, 3, 1)
	n := c.nodes[1]
	for i := range 100 {
		c.nodes[0].put(fmt.Sprint("k", i), "v")
	}
	c.alarms()
	c.nodes[0].put("bad", "v")
	c.nodes[0].m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k")}, nil)
	c.accused(n.m.replica.id, "the majority", map[ids.Member]*atomic.Uint64{n.m.replica.id: at[1]})
	n.corrupted()

	// While they differ, the alarm comes back, also after restarts of the member; once they are
	// equal again, it does not.
	clear := func() {
		c.nodes[0].alarm(&pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: uint64(n.m.replica.id), Alarm: pb.AlarmType_CORRUPT})
	}
	n.stop()
	c.nodes[0].putOrCorrupt(clear)
	n.mustStart()
	n.ready()
	c.alarms(&pb.AlarmMember{MemberID: uint64(n.m.replica.id), Alarm: pb.AlarmType_CORRUPT})
	if _, err := c.nodes[0].m.Members.MemberRemove(AsRoot(background(t)), n.m.replica.id); err != nil {
		t.Fatal(err)
	}
	n.stop()
	c.nodes = append(c.nodes[:1], c.nodes[2:]...)
	c.nodes[0].putOrCorrupt(clear)
	eventually(t, "nobody is named any more", func() bool { return len(c.leader().m.Digests.errors()) == 0 })
	c.alarms()
	c.diverges = false
}

// putOrCorrupt clears alarms until a write is accepted: a round in progress may raise the
// alarm once more.
func (n *node) putOrCorrupt(clear func()) {
	n.t.Helper()
	eventually(n.t, "writes are taken", func() bool {
		clear()
		_, err := n.m.KV.Put(background(n.t), &pb.PutRequest{Key: []byte("x")}, nil)
		return err == nil
	})
}

func TestDigestOfTwoHalves(t *testing.T) {
	c, at := founded(t, 2, 1)
	c.nodes[0].put("k", "v")
	c.nodes[0].put("bad", "v")
	lead := c.leader()
	other := c.nodes[0]
	if other == lead {
		other = c.nodes[1]
	}
	c.accused(0, "the leader", map[ids.Member]*atomic.Uint64{other.m.replica.id: at[1]})
}

// A wrong leader accuses itself.
func TestDigestNamesTheLeader(t *testing.T) {
	c, at := founded(t, 3, 2)
	c.nodes[0].put("k", "v")
	bad := c.nodes[2]
	eventually(t, "it leads", func() bool {
		if c.leader() == bad {
			return true
		}
		c.leader().m.Maintenance.MoveLeader(background(t), bad.m.replica.id)
		return c.leader() == bad
	})
	bad.put("bad", "v")
	c.accused(bad.m.replica.id, "the majority", map[ids.Member]*atomic.Uint64{bad.m.replica.id: at[2]})
}

// Members that report no digest are left out.
func TestDigestOfOthers(t *testing.T) {
	c := newCluster(t, 3, often)
	n := c.follower()
	h := *n.handler.Load()
	var asked atomic.Int64
	silent := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/members/digest") {
			asked.Add(1)
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	eventually(t, "it is known to tell a digest", func() bool { return c.leader().m.Digests.Tells(n.m.replica.id) })
	n.handler.Store(&silent)
	eventually(t, "it is not any more", func() bool { return asked.Load() > 2 && !c.leader().m.Digests.Tells(n.m.replica.id) })
	c.nodes[0].put("k", "v")
	c.alarms()
}

// A snapshot includes the digest: a member that started with one is compared with the others
// from the first entry on.
func TestDigestTravels(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { often(cfg); smallLog(cfg) })
	lead, n := c.leader(), c.follower()
	id := n.m.replica.id
	eventually(t, "it is known to tell a digest", func() bool { return lead.m.Digests.Tells(id) })
	n.stop()
	c.fallBehind(n, "k")
	n.mustStart()
	n.ready()
	lead.put("last", "v")
	c.sameHash()
	if n.installed() == 0 {
		t.Fatal("no snapshot was installed")
	}
	if r := n.m.Digests.own(0); r.Began != 0 {
		t.Errorf("began at %d", r.Began)
	}
	if got := digest.Compare(lead.m.Digests.own(0), n.m.Digests.own(0)); !got.Known || got.State.Found() {
		t.Errorf("%+v", got)
	}
	c.alarms()
}
