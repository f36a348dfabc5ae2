package mixed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/history"
)

// member is one member of a cluster, across restarts.
type member struct {
	kind   *kind
	name   string
	id     uint64
	gate   *gate
	proc   *harness.Member
	client *child.Client
	cfg    harness.Config
	// expectFailure is in the error with which the member is expected to exit.
	expectFailure string
}

func (m *member) String() string { return m.name }

// group is a cluster whose members come and go. It must be used by one goroutine.
type group struct {
	t       *testing.T
	dir     string
	net     *network
	args    []string // additional flags of every member
	members []*member
	logs    []*member // all that ever ran
	n       int       // number of members ever created

	load     *history.Load
	watchers []*history.Watcher
	held     *history.Leases
	// still prevents compactions while hashes are compared.
	still sync.Mutex
	// serving are the clients that watchers may choose from.
	servingMu sync.Mutex
	serving   []*child.Client
}

// found starts a new cluster with a member of each of the kinds.
func found(t *testing.T, args []string, kinds ...*kind) *group {
	t.Helper()
	if !*longFlag {
		// Members are killed, the machine is not. Ten members that sync on one disk, which other lanes use as well,
		// would wait for it most of the time.
		args = append([]string{"--unsafe-no-fsync"}, args...)
	}
	g := &group{t: t, dir: t.TempDir(), net: newNetwork(), args: args}
	if *keep != "" {
		g.dir = filepath.Join(*keep, filepath.Base(t.Name()))
	}
	t.Cleanup(func() {
		g.net.mend()
		for _, m := range g.logs {
			if m.proc != nil {
				m.proc.Kill() // the test is over; a process that is already gone is fine
			}
		}
		g.checkLogs()
	})
	var all []string
	for _, k := range kinds {
		m := g.make(k)
		g.members = append(g.members, m)
		all = append(all, m.name+"="+m.gate.URL())
	}
	for _, m := range g.members {
		m.cfg.InitialCluster = strings.Join(all, ",")
		g.start(m)
	}
	for _, m := range g.members {
		g.ready(m)
	}
	g.rewire()
	return g
}

// make prepares a member without starting it.
func (g *group) make(k *kind) *member {
	g.t.Helper()
	g.n++
	m := &member{kind: k, name: fmt.Sprintf("%s-%d", k.name, g.n), gate: g.net.gate(g.t)}
	m.cfg = harness.Config{Binary: k.binary, Name: m.name, Dir: filepath.Join(g.dir, m.name), AdvertisePeerURL: m.gate.URL()}
	for _, a := range g.args {
		m.cfg.Args = append(m.cfg.Args, strings.Replace(a, "--snapshot-catchup-entries", k.catchUp, 1))
	}
	g.logs = append(g.logs, m)
	return m
}

// portTaken is in the error of a member whose port was taken between selection and use.
const portTaken = "address already in use"

// start starts the process of a member on ports of its own; ready chooses others if necessary.
func (g *group) start(m *member) {
	g.t.Helper()
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		g.t.Fatal(err)
	}
	m.cfg.ClientAddr, m.cfg.PeerAddr = addrs[0], addrs[1]
	if m.proc, err = harness.Start(m.cfg); err != nil {
		g.t.Fatal(err)
	}
	m.gate.lead(m.proc.Pid(), m.cfg.PeerAddr)
	m.client = child.Dial(g.t, m.cfg.ClientAddr)
}

// restart restarts a killed member.
func (g *group) restart(m *member) {
	g.t.Helper()
	if err := m.proc.Restart(); err != nil {
		g.t.Fatal(err)
	}
	m.gate.lead(m.proc.Pid(), m.cfg.PeerAddr)
}

func (g *group) kill(m *member) {
	g.t.Helper()
	if err := m.proc.Kill(); err != nil {
		g.t.Fatal(err)
	}
}

// swap restarts a member with another kind of server on the same data. It is stopped gracefully: a kill may lose
// what a release last wrote about its storage, which the other one reads.
func (g *group) swap(m *member, k *kind) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := m.proc.Stop(ctx); err != nil {
		g.t.Fatal(err)
	}
	if err := m.proc.SetBinary(k.binary); err != nil {
		g.t.Fatal(err)
	}
	m.kind = k
	g.restart(m)
	g.ready(m)
}

// ready waits until a member serves, and records its id.
func (g *group) ready(m *member) {
	g.t.Helper()
	child.Eventually(g.t, limit, m.name+" answers", func() error {
		if !m.proc.Running() {
			if tail := m.proc.LogTail(15); !strings.Contains(tail, portTaken) {
				g.t.Fatalf("%s has ended; its log ends with:\n%s", m.name, tail)
			}
			g.start(m)
			g.rewire()
		}
		s, err := m.status()
		if err == nil {
			m.id = s.Header.MemberId
			if s.Leader == 0 {
				err = errors.New("no leader")
			} else if !s.IsLearner {
				_, _, err = m.client.GetWithin(3*time.Second, "any")
			}
		}
		return err
	})
}

func (m *member) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 3*time.Second)
}

func (m *member) status() (*pb.StatusResponse, error) {
	ctx, cancel := m.within()
	defer cancel()
	return m.client.Maintenance.Status(ctx, &pb.StatusRequest{})
}

// rewire points load and watchers at the present members.
func (g *group) rewire(without ...*member) {
	var cs []*child.Client
	for _, m := range g.members {
		if !slices.Contains(without, m) {
			cs = append(cs, m.client)
		}
	}
	if g.load != nil {
		g.load.Set(cs)
	}
	g.servingMu.Lock()
	g.serving = cs
	g.servingMu.Unlock()
}

// clients of all members.
func (g *group) clients() []*child.Client {
	var cs []*child.Client
	for _, m := range g.members {
		cs = append(cs, m.client)
	}
	return cs
}

// call tries an administrative call at members in turn until one accepts it. What a member refuses for now (no
// leader, unhealthy, learner not ready) is retried.
func (g *group) call(what string, at []*member, f func(ctx context.Context, c *child.Client) error) {
	g.t.Helper()
	i, start := 0, time.Now()
	refused := map[string]int{}
	defer func() {
		if d := time.Since(start); d > 6*time.Second {
			g.t.Logf("%s took %v; refused with %v", what, d.Round(time.Millisecond), refused)
		}
	}()
	child.Eventually(g.t, limit, what, func() error {
		// Shorter than the members' own timeout: a request that was forwarded to a leader which is gone gets no answer
		// at all.
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		defer cancel()
		m := at[i%len(at)]
		i++
		if err := f(ctx, m.client); err != nil {
			refused[m.name+": "+err.Error()]++
			history.Sleep(g.t.Context(), 100*time.Millisecond)
			return fmt.Errorf("at %s: %w", m, err)
		}
		return nil
	})
}

// add adds a new member of a kind, as a learner that is promoted or directly as a voter, and returns when it
// serves. announced functions are called when the cluster knows the member and before it is started.
func (g *group) add(k *kind, learner bool, announced ...func()) *member {
	g.t.Helper()
	m := g.make(k)
	g.announce(m, learner)
	m.cfg.InitialCluster, m.cfg.ClusterState = g.initial(m), "existing"
	for _, f := range announced {
		f()
	}
	g.start(m)
	g.ready(m)
	if learner {
		// The command goes to any member; only the leader can decide, so the others forward it.
		g.call("promote "+m.name, g.members, func(ctx context.Context, c *child.Client) error {
			_, err := c.Cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: m.id})
			if err != nil && strings.Contains(err.Error(), "can only promote a learner member") && !strings.Contains(err.Error(), "in sync") {
				return nil
			}
			return err
		})
		child.Eventually(g.t, limit, m.name+" knows that it votes", func() error {
			if s, err := m.status(); err != nil || s.IsLearner {
				return fmt.Errorf("learner %v, %v", s.GetIsLearner(), err)
			}
			return nil
		})
		g.ready(m)
	}
	g.members = append(g.members, m)
	g.rewire()
	return m
}

// initial is the value of --initial-cluster for a member that joins.
func (g *group) initial(m *member) string {
	all := []string{m.name + "=" + m.gate.URL()}
	for _, o := range g.members {
		all = append(all, o.name+"="+o.gate.URL())
	}
	return strings.Join(all, ",")
}

// announce adds a member that is not started.
func (g *group) announce(m *member, learner bool) {
	g.t.Helper()
	g.call("add "+m.name, g.members, func(ctx context.Context, c *child.Client) error {
		_, err := c.Cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{m.gate.URL()}, IsLearner: learner})
		if err != nil && g.listed(m.gate.URL()) != 0 {
			return nil // an earlier call, whose answer was lost
		}
		return err
	})
}

// listed returns the id of the member with a peer URL, 0 if no member that answers lists it.
func (g *group) listed(url string) uint64 {
	for _, m := range g.members {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		r, err := m.client.Cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		cancel()
		if err != nil {
			continue
		}
		for _, x := range r.Members {
			if slices.Contains(x.PeerURLs, url) {
				return x.ID
			}
		}
		return 0
	}
	return 0
}

// remove removes a member. It must notice and exit by itself, unless its process is not running.
func (g *group) remove(m *member) {
	g.t.Helper()
	rest := slices.DeleteFunc(slices.Clone(g.members), func(o *member) bool { return o == m })
	g.rewire(m)
	g.call("remove "+m.name, rest, func(ctx context.Context, c *child.Client) error {
		_, err := c.Cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.id})
		if err != nil && strings.Contains(err.Error(), "member not found") {
			return nil // an earlier call, whose answer was lost
		}
		return err
	})
	g.members = rest
	g.rewire()
	select {
	case <-m.proc.Exited():
	case <-time.After(limit):
		g.t.Fatalf("%s is removed and still runs after %v", m, limit)
	}
}

// replace replaces a member with a new one of a kind: as a learner before the old one goes, or as a voter after
// it has gone.
func (g *group) replace(old *member, k *kind, learner bool, announced ...func()) *member {
	g.t.Helper()
	if !learner {
		g.remove(old)
		return g.add(k, false, announced...)
	}
	m := g.add(k, true, announced...)
	g.remove(old)
	return m
}

// leader returns the leader that all agree on.
func (g *group) leader() *member {
	g.t.Helper()
	var lead *member
	child.Eventually(g.t, limit, "a leader that all agree on", func() error {
		lead = nil
		for _, m := range g.members {
			if !m.proc.Running() {
				continue
			}
			s, err := m.status()
			if err != nil {
				return err
			}
			i := slices.IndexFunc(g.members, func(o *member) bool { return o.id == s.Leader })
			if i < 0 || lead != nil && lead != g.members[i] {
				return fmt.Errorf("%s follows %x, others %v", m, s.Leader, lead)
			}
			lead = g.members[i]
		}
		if lead == nil || !lead.proc.Running() {
			return fmt.Errorf("all follow %v, which is gone", lead)
		}
		return nil
	})
	return lead
}

// makeLead hands leadership to m.
func (g *group) makeLead(m *member) {
	g.t.Helper()
	child.Eventually(g.t, limit, m.name+" leads", func() error {
		lead := g.leader()
		if lead == m {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := lead.client.Maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: m.id})
		return errors.Join(fmt.Errorf("%s led", lead), err)
	})
}

// isolate cuts a member off from all others.
func (g *group) isolate(m *member, hard bool) {
	for _, o := range g.members {
		if o != m {
			g.net.cut(hard, m.gate, o.gate)
		}
	}
}

// equal compares the hashes of all members at the newest revision.
func (g *group) equal() {
	g.t.Helper()
	g.still.Lock()
	defer g.still.Unlock()
	rev := history.Rev(g.t, limit, g.members[0].client)
	history.EqualHashes(g.t, limit, g.clients(), rev)
}

// version waits until all members know a version of the cluster, and checks that they store the
// same.
func (g *group) version(want string) {
	g.t.Helper()
	for _, m := range g.members {
		child.Eventually(g.t, limit, fmt.Sprintf("%s knows version %s", m, want), func() error {
			v, err := m.versions()
			if err != nil {
				return err
			}
			// 3.5 does not report its storage version.
			if v.Cluster != want || v.Storage != want && m.kind != etcd35 {
				return fmt.Errorf("cluster %s, storage %s", v.Cluster, v.Storage)
			}
			return nil
		})
	}
}

// versions is a member's answer to /version.
type versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"`
	Storage string `json:"storage"`
}

var web = &http.Client{Timeout: 5 * time.Second}

func (m *member) versions() (v versions, err error) {
	resp, err := web.Get(m.proc.ClientURL() + "/version")
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, json.NewDecoder(resp.Body).Decode(&v)
}

// downgrade sends a request about downgrading to any member that serves it.
func (g *group) downgrade(action pb.DowngradeRequest_DowngradeAction, version string) {
	g.t.Helper()
	g.call(fmt.Sprintf("downgrade %v %s", action, version), g.members, func(ctx context.Context, c *child.Client) error {
		_, err := c.Maintenance.Downgrade(ctx, &pb.DowngradeRequest{Action: action, Version: version})
		return err
	})
}

// kinds names the kinds of the present members.
func (g *group) kinds() string {
	n := map[string]int{}
	for _, m := range g.members {
		n[m.kind.name]++
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(n)) {
		all = append(all, fmt.Sprintf("%d %s", n[k], k))
	}
	return strings.Join(all, ", ")
}

// strain puts the cluster under load: recording clients, watchers at different members, and a compactor that
// stays after the watchers.
func (g *group) strain(seed uint64) {
	g.load = history.NewLoad(g.clients(), seed)
	g.t.Cleanup(func() { g.load.Stop() })
	for i := range 3 {
		turn := i
		g.watchers = append(g.watchers, history.Watch(g.t, func() *child.Client {
			g.servingMu.Lock()
			defer g.servingMu.Unlock()
			turn++
			return g.serving[turn%len(g.serving)]
		}))
	}
	for id := range 3 {
		g.load.Mix(id)
	}
	for id := 3; id < 6; id++ {
		g.load.Unique(id, 10*time.Millisecond)
	}
	g.held = history.StartLeases(g.load, seed)
	history.CompactBehind(g.load, g.watchers, func(compact func()) {
		g.still.Lock()
		defer g.still.Unlock()
		compact()
	})
}

// verdict stops the load and checks all records.
func (g *group) verdict() {
	g.t.Helper()
	g.held.Enough(g.t, limit)
	took := g.load.Since()
	g.load.Stop()
	g.held.Settle(g.t, limit, g.members[0].client)
	rev, hash, _ := history.Verdict(g.t, limit, g.load, g.watchers, g.clients())
	streams := int64(0)
	for _, w := range g.watchers {
		streams += w.Streams()
	}
	g.t.Logf("%v: %d operations acknowledged, %d without answer, longest time without an acknowledged write %v; %d revisions, %d watch streams, hash %08x on all members",
		took.Round(time.Second), g.load.Acked.Load(), g.load.Unknown.Load(), g.load.Longest().Round(time.Millisecond), rev, streams, hash)
	if g.load.Acked.Load() < 500 {
		g.t.Errorf("%d acknowledged operations prove nothing", g.load.Acked.Load())
	}
}
