package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2member"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
)

// v2do retries a request while the cluster cannot accept it.
func (n *node) v2do(r v2request.Request) *v2store.Event {
	n.t.Helper()
	for {
		ev, err := n.m.V2.V2Do(background(n.t), &r)
		if err == nil {
			return ev
		}
		if !retried(err) && !errors.Is(err, v2member.ErrUnknown) {
			n.t.Fatalf("%s %s on %s: %v", r.Method, r.Path, n.name, err)
		}
		if n.m.replica.pause(background(n.t), 10*time.Millisecond) != nil {
			n.t.Fatalf("%s %s on %s: %v", r.Method, r.Path, n.name, err)
		}
	}
}

func (n *node) v2set(key, value string) *v2store.Event {
	n.t.Helper()
	return n.v2do(v2request.Request{Method: "PUT", Path: "/1/" + key, Val: value})
}

// v2get is a quorum read; "" means that the key does not exist.
func (n *node) v2get(key string) string {
	n.t.Helper()
	for {
		ev, err := n.m.V2.V2Do(background(n.t), &v2request.Request{Method: "GET", Path: "/1/" + key, Quorum: true})
		var refused *v2store.Error
		switch {
		case err == nil:
			return *ev.Node.Value
		case errors.As(err, &refused) && refused.Code == v2store.CodeKeyNotFound:
			return ""
		case !retried(err):
			n.t.Fatalf("read %s on %s: %v", key, n.name, err)
		}
	}
}

// v2Event returns the next event of a watcher.
func v2Event(t *testing.T, w *v2store.Watcher) *v2store.Event {
	t.Helper()
	select {
	case e, ok := <-w.Events():
		if !ok {
			t.Fatal("the watcher has ended")
		}
		return e
	case <-time.After(patience):
		t.Fatal("no event")
	}
	return nil
}

func TestV2(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	eventually(t, "the cluster has a version", func() bool { return n.m.Versions.Capable() && n.m.replica.mach().V2().Index() >= 3 })
	if got := n.m.replica.mach().V2().Index(); got != 3 {
		t.Errorf("a new member begins at %d, want 3: it was added, has a name, and the cluster a version", got)
	}
	w, err := n.m.V2.V2Watch("/1/dir", true, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	first := n.v2set("dir/a", "one")
	if first.Action != v2store.Set || !first.IsCreated() || first.Node.ModifiedIndex != 4 {
		t.Errorf("got %+v", first)
	}
	if got := n.v2get("dir/a"); got != "one" {
		t.Errorf("read %q", got)
	}
	if e := v2Event(t, w); e.Node.Key != "/1/dir/a" || e.Node.ModifiedIndex != 4 {
		t.Errorf("event %+v", e)
	}
	ctx := background(t)
	_, err = n.m.V2.V2Do(ctx, &v2request.Request{Method: "PUT", Path: "/1/dir/a", Val: "two", PrevIndex: 77})
	var refused *v2store.Error
	if !errors.As(err, &refused) || refused.Code != v2store.CodeCompareFailed || refused.Index != 4 {
		t.Errorf("got %v, want a failed comparison", err)
	}
	if _, err := n.m.V2.V2Do(ctx, &v2request.Request{Method: "PUT", Path: "/1/big", Val: string(make([]byte, v2request.MaxBytes))}); !errors.Is(err, rpctypes.ErrGRPCRequestTooLarge) {
		t.Errorf("a request of more than the bound: %v", err)
	}
	if ev := n.v2do(v2request.Request{Method: "PUT", Path: "/1/big", Val: string(make([]byte, 2<<20))}); len(*ev.Node.Value) != 2<<20 {
		t.Error("a value beyond --max-request-bytes was cut")
	}
	if ev := n.v2do(v2request.Request{Method: "DELETE", Path: "/1/big"}); ev.Action != v2store.Delete {
		t.Errorf("got %+v", ev)
	}
	before := n.m.replica.mach().V2().Index()
	n.stop()
	if e, ok := <-w.Events(); ok {
		t.Errorf("after the stop the watcher got %+v", e)
	}
	if _, err := n.m.V2.V2Watch("/1", true, true, 0); !errors.Is(err, errStopped) {
		t.Errorf("a watch after the stop: %v", err)
	}
	if _, err := n.m.V2.V2Do(ctx, &v2request.Request{Method: "PUT", Path: "/1/late"}); !errors.Is(err, errStopped) {
		t.Errorf("a write after the stop: %v", err)
	}
	n.mustStart()
	n.ready()
	// Publishing its name again advances the index, and may happen more than once.
	if got := n.m.replica.mach().V2().Index(); n.v2get("dir/a") != "one" || got <= before {
		t.Errorf("after a restart: %q at %d, was one at %d", n.v2get("dir/a"), got, before)
	}
	if e := n.v2history(t, 4); e.Node.Key != "/1/dir/a" || e.PrevNode != nil {
		t.Errorf("the history has %+v", e)
	}
}

// v2history returns the event of an index.
func (n *node) v2history(t *testing.T, index ids.Index) *v2store.Event {
	t.Helper()
	w, err := n.m.V2.V2Watch("/", true, false, uint64(index))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return v2Event(t, w)
}

// sameV2 waits until all running members have the same tree, including its history.
func (c *cluster) sameV2() {
	c.t.Helper()
	var last [2]string
	for deadline := time.Now().Add(patience); ; {
		trees := map[string]string{}
		for _, n := range c.nodes {
			if n.handler.Load() != nil {
				trees[v2records(c.t, n.m)] = n.name
			}
		}
		if len(trees) == 1 {
			return
		}
		i := 0
		for tree := range trees {
			last[i%2] = tree
			i++
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the trees differ: %.2000s\n%.2000s", last[0], last[1])
		}
		c.nodes[0].m.replica.pause(context.Background(), 10*time.Millisecond)
	}
}

func v2records(t *testing.T, m *Member) string {
	t.Helper()
	eng := m.replica.mach().Engine().NewSnapshot()
	defer eng.Close()
	out, err := enginetest.Records(eng, engine.V2)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%q", out)
}

// A power cut loses no acknowledged write; expiry continues with another leader; a member that
// was down gets the tree with a snapshot; and in the end all members have the same tree.
func TestV2Cluster(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	for i, n := range c.nodes {
		n.v2set(fmt.Sprintf("k%d", i), n.name)
	}
	for i, n := range c.nodes {
		if got := n.v2get(fmt.Sprintf("k%d", (i+1)%3)); got != c.nodes[(i+1)%3].name {
			t.Errorf("%s reads %q of the next", n.name, got)
		}
	}
	c.sameV2()
	n := c.follower()
	w, err := n.m.V2.V2Watch("/1", true, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.isolate(n)
	c.leader().v2set("missed", "yes")
	c.fallBehind(n, "v3")
	before := n.m.currentStoreName(t)
	n.heal()
	eventually(t, "a snapshot is installed", func() bool { return n.m.currentStoreName(t) != before && n.m.logw.work.Mark() > 0 })
	if got := n.v2get("missed"); got != "yes" {
		t.Errorf("after the snapshot it reads %q", got)
	}
	for ended := false; !ended; { // it may have got some events before it was disconnected
		select {
		case _, ok := <-w.Events():
			ended = !ok
		case <-time.After(patience):
			t.Fatal("the watcher has outlived the tree that it was of")
		}
	}
	c.sameV2()
	lead := c.leader()
	expire := c.clk.Now().Add(time.Hour).UnixNano()
	lead.v2do(v2request.Request{Method: "PUT", Path: "/1/brief", Val: "x", Expiration: expire})
	lead.crash()
	c.clk.ahead.Add(int64(2 * time.Hour)) // expires the remaining keys, on any leader
	next := c.leader()
	eventually(t, "the key has expired", func() bool { return next.v2get("brief") == "" })
	lead.mustStart()
	lead.ready()
	for _, x := range c.nodes {
		if got := x.v2get("missed"); got != "yes" {
			t.Errorf("%s reads %q in the end", x.name, got)
		}
	}
	c.sameV2()
}

// A member that is down does not block writes if it is known to support v2.
func TestV2PeerDown(t *testing.T) {
	c := newCluster(t, 3, calm)
	n, x := c.nodes[0], c.nodes[1]
	// A leader that got no answer from a member in time starts with the lowest version.
	eventually(t, "the cluster has the version of its members", func() bool { return !n.m.cluster.Version().Less(membership.FirstWithoutV2) })
	n.v2set("a", "b")
	x.stop() // down: its last known version counts
	c.leader()
	n.v2set("a", "c")
	x.mustStart()
	x.ready()
	n.v2set("a", "d")
	if got := x.v2get("a"); got != "d" {
		t.Errorf("the member that was down reads %q", got)
	}
}
