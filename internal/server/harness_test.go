package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// patience bounds every wait for an event that must happen.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-poll.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

func TestMain(m *testing.M) {
	releaseDelay = 50 * time.Millisecond
	if os.Getenv(crashChild) != "" {
		panicInCore()
		select {} // until the process exits
	}
	os.Exit(m.Run())
}

// skewed is the machine's clock plus what the test adds.
type skewed struct {
	clock.Real
	ahead atomic.Int64
}

func (s *skewed) Now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// node is a place where a member runs, with a disk and an address that survive it. Peers
// connect to it through real sockets, which can be cut.
type node struct {
	t        *testing.T
	name     string
	url      string
	fs       vfs.FS
	m        *Member
	cut      atomic.Bool // a cut node cannot reach its peers, nor they it
	handler  atomic.Pointer[http.Handler]
	srv      *http.Server
	mu       sync.Mutex
	conns    map[net.Conn]ids.Member // by the member that dialed
	cluster  *cluster
	existing bool
	patience time.Duration // JoinPatience
	force    bool
	initial  []membership.InitialMember
}

type cluster struct {
	t     *testing.T
	nodes []*node
	cuts  sync.Map // ids of the members that are cut off
	clk   *skewed
	tune  func(*Config)
	// The digest applied at each index, by the first member that applied it.
	appliedMu sync.Mutex
	applied   map[ids.Index]uint64
	opened    func(*Member) // called before a member starts, if set
	diverges  bool          // a member deliberately writes different records
}

// newHistory is for a log that does not continue the previous one.
func (c *cluster) newHistory() {
	c.appliedMu.Lock()
	defer c.appliedMu.Unlock()
	clear(c.applied)
}

// noteApplied compares the entry that a member is about to apply with what the others have
// applied at the same index.
func (c *cluster) noteApplied(name string, e *apply.Entry) {
	digest := e.Digest()
	c.appliedMu.Lock()
	defer c.appliedMu.Unlock()
	if first, ok := c.applied[ids.Index(e.GetIndex())]; ok && first != digest {
		c.t.Errorf("%s applies something else at index %d than another member did (term %d, of a client of its own: %v)", name, e.GetIndex(), e.GetTerm(), e.Local)
	} else if !ok {
		c.applied[ids.Index(e.GetIndex())] = digest
	}
}

type connKey struct{}

func (c *cluster) newNode(name string) *node {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	n := &node{t: c.t, name: name, url: "http://" + l.Addr().String(), fs: vfs.NewCrashableMem(), conns: map[net.Conn]ids.Member{}, cluster: c}
	n.srv = transport.HTTPServer(http.HandlerFunc(n.serve), zap.NewNop())
	n.srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	done := make(chan struct{})
	go func() { defer close(done); n.srv.Serve(l) }()
	c.t.Cleanup(func() { n.srv.Close(); <-done })
	c.nodes = append(c.nodes, n)
	return n
}

// serve serves a request unless one of its ends is cut off or down.
func (n *node) serve(w http.ResponseWriter, r *http.Request) {
	from, _ := ids.ParseMember(r.Header.Get("X-Server-From"))
	conn := r.Context().Value(connKey{}).(net.Conn)
	n.mu.Lock()
	n.conns[conn] = from
	n.mu.Unlock()
	h := n.handler.Load()
	if h == nil || n.cut.Load() || n.cluster.isCut(from) {
		panic(http.ErrAbortHandler)
	}
	(*h).ServeHTTP(w, r)
}

func (c *cluster) isCut(id ids.Member) bool {
	_, cut := c.cuts.Load(id)
	return cut
}

// isolate cuts off a running node; heal undoes it.
func (c *cluster) isolate(n *node) {
	n.cut.Store(true)
	c.cuts.Store(n.m.replica.id, true)
	for _, x := range c.nodes {
		x.mu.Lock()
		for conn, from := range x.conns {
			if x == n || from == n.m.replica.id {
				conn.Close()
				delete(x.conns, conn)
			}
		}
		x.mu.Unlock()
	}
}

func (n *node) heal() {
	n.cut.Store(false)
	n.cluster.cuts.Delete(n.m.replica.id)
}

func (n *node) config() Config {
	cfg := Config{
		Name: n.name, DataDir: "data", PeerURLs: []string{n.url}, ClientURLs: []string{"http://" + n.name + ":2379"},
		Bootstrap: Bootstrap{Initial: n.initial, InitialToken: "test", Existing: n.existing, JoinPatience: n.patience, ForceNew: n.force},
		Timing:    Timing{Tick: 10 * time.Millisecond, ElectionTicks: 10, InitialTickAdvance: true, PreVote: true},
		Tokens:    auth.TokenOptions{Spec: "simple"}, BcryptCost: 4, SnapshotCount: 10000, CatchUpEntries: 5000,
		MaxRequestBytes: 1 << 20, Membership: membership.Options{MaxLearners: 1}, FS: n.fs, Clock: n.cluster.clk, Logger: testLogger,
		Checks: IntegrityOptions{Digests: 50 * time.Millisecond},
	}
	if n.cluster.tune != nil {
		n.cluster.tune(&cfg)
	}
	return cfg
}

var testLogger = testLog()

func testLog() *zap.Logger {
	if os.Getenv("QUORATE_TEST_LOG") == "" {
		return zap.NewNop()
	}
	lg, _ := zap.NewDevelopment(zap.AddStacktrace(zap.FatalLevel))
	return lg
}

// start opens and starts the member, without waiting for a leader.
func (n *node) start() error {
	m, err := Open(context.Background(), n.config())
	if err != nil {
		return err
	}
	m.applier.noteApplied = func(e *apply.Entry) { n.cluster.noteApplied(n.name, e) }
	if n.force {
		n.cluster.newHistory()
	}
	if n.cluster.opened != nil {
		n.cluster.opened(m)
	}
	h := m.PeerHandler()
	n.m = m
	n.handler.Store(&h)
	m.Start()
	return nil
}

func (n *node) mustStart() {
	n.t.Helper()
	if err := n.start(); err != nil {
		n.t.Fatalf("start %s: %v", n.name, err)
	}
}

func (n *node) ready() {
	n.t.Helper()
	select {
	case <-n.m.Ready():
	case <-n.m.replica.Failed():
		n.t.Fatalf("%s: %v", n.name, n.m.replica.Err())
	case <-time.After(patience):
		n.t.Fatalf("%s is not ready", n.name)
	}
}

func (n *node) stop() {
	if n.m != nil {
		n.m.Stop()
		n.handler.Store(nil)
	}
}

// crash stops the member without letting its cleanup reach the disk.
func (n *node) crash() {
	disk := n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	n.handler.Store(nil)
	n.cluster.isolate(n)
	n.m.Stop()
	n.fs = disk
	n.heal()
}

// calm is for tests that issue a request once and need the answer: on a busy machine, members
// with ticks of 10 ms may hold elections in between.
func calm(cfg *Config) { cfg.Tick = 50 * time.Millisecond }

// newCluster founds and starts a cluster of size members.
func newCluster(t *testing.T, size int, tune func(*Config)) *cluster {
	t.Helper()
	c := prepareCluster(t, size, tune)
	c.launch()
	return c
}

// prepareCluster creates the nodes of a new cluster; launch founds it on them.
func prepareCluster(t *testing.T, size int, tune func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, clk: &skewed{}, tune: tune, applied: map[ids.Index]uint64{}}
	var initial []membership.InitialMember
	for i := range size {
		n := c.newNode(fmt.Sprintf("m%d", i))
		initial = append(initial, membership.InitialMember{Name: n.name, PeerURLs: []string{n.url}})
	}
	for _, n := range c.nodes {
		n.initial = initial
	}
	return c
}

func (c *cluster) launch() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.mustStart()
	}
	c.t.Cleanup(c.stop)
	for _, n := range c.nodes {
		n.ready()
	}
}

// stop stops all members at once: none waits for another to become leader.
func (c *cluster) stop() {
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		if n.m != nil && !c.diverges {
			for _, line := range n.m.Digests.errors() {
				c.t.Errorf("%s: %s", n.name, line)
			}
		}
		if n.m != nil {
			wg.Go(func() { n.m.Stop() })
		}
	}
	wg.Wait()
}

// leader waits until all running nodes agree on one.
func (c *cluster) leader() *node {
	c.t.Helper()
	var lead *node
	eventually(c.t, "all members know the leader", func() bool {
		lead = nil
		var id ids.Member
		for _, n := range c.nodes {
			if n.m == nil || n.handler.Load() == nil || n.cut.Load() {
				continue
			}
			if l := n.m.replica.Leader(); l == 0 || id != 0 && l != id {
				return false
			} else {
				id = l
			}
			if n.m.replica.isLeader() {
				lead = n
			}
		}
		return lead != nil
	})
	return lead
}

// follower returns a running member that does not lead.
func (c *cluster) follower() *node {
	c.t.Helper()
	lead := c.leader()
	for _, n := range c.nodes {
		if n != lead && n.m != nil && n.handler.Load() != nil {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// retried reports whether a client would retry: the machine is busy, and an election may
// intervene.
func retried(err error) bool {
	for _, e := range []error{rpctypes.ErrGRPCTimeout, rpctypes.ErrGRPCTimeoutDueToLeaderFail, rpctypes.ErrGRPCTimeoutDueToConnectionLost,
		rpctypes.ErrGRPCLeaderChanged, rpctypes.ErrGRPCNoLeader} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (n *node) put(key, value string) ids.Revision {
	n.t.Helper()
	return n.putReq(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func (n *node) putReq(r *pb.PutRequest) ids.Revision {
	n.t.Helper()
	for {
		resp, err := n.m.KV.Put(background(n.t), r, nil)
		if err == nil {
			return ids.Revision(resp.Header.Revision)
		}
		if !retried(err) {
			n.t.Fatalf("put %s on %s: %v", r.Key, n.name, err)
		}
	}
}

func (n *node) rangeOf(r *pb.RangeRequest) *mvcc.RangeResult {
	n.t.Helper()
	for {
		res, err := n.m.KV.Range(AsRoot(background(n.t)), r)
		if err == nil {
			return res
		}
		if !retried(err) {
			n.t.Fatalf("range on %s: %v", n.name, err)
		}
	}
}

// get returns the value of a key by a linearizable read, "" if there is none.
func (n *node) get(key string) string {
	n.t.Helper()
	res := n.rangeOf(&pb.RangeRequest{Key: []byte(key)})
	if len(res.KVs) == 0 {
		return ""
	}
	return string(decodeKV(n.t, res.KVs[0]).Value)
}

func decodeKV(t *testing.T, b []byte) *mvccpb.KeyValue {
	t.Helper()
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(b, kv); err != nil {
		t.Fatal(err)
	}
	return kv
}

// sameHash checks that all running members have the same data at the current revision.
func (c *cluster) sameHash() {
	c.t.Helper()
	lead := c.leader()
	rev, commit := lead.rangeOf(&pb.RangeRequest{Key: []byte("a")}).Revision, ids.Index(lead.m.replica.commit.Load())
	var want mvcc.HashResult
	for i, n := range c.nodes {
		if n.handler.Load() == nil {
			continue
		}
		eventually(c.t, n.name+" has caught up", func() bool { return n.m.replica.mach().Applied() >= commit })
		h, err := n.m.Maintenance.HashKV(background(c.t), rev)
		if err != nil {
			c.t.Fatalf("hash on %s: %v", n.name, err)
		}
		h.CurrentRev = 0
		if want == (mvcc.HashResult{}) {
			want = h
		} else if h != want {
			c.t.Fatalf("hash on %s (%d) is %+v, want %+v", n.name, i, h, want)
		}
	}
}

// watcher collects the events of one key range in order.
type watcher struct {
	t      *testing.T
	stream *watch.Stream
	events []*mvccpb.Event
}

func (n *node) watch(prefix string, from int64) *watcher {
	n.t.Helper()
	w := &watcher{t: n.t, stream: n.m.Watches.Hub().NewStream(context.Background())}
	n.t.Cleanup(w.stream.Close)
	end := append([]byte(prefix[:len(prefix)-1]), prefix[len(prefix)-1]+1)
	if err := w.stream.Create(&pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: end, StartRevision: from}); err != nil {
		n.t.Fatal(err)
	}
	if r := w.next(); !r.Created {
		n.t.Fatalf("first answer of a watch: %v", r)
	}
	return w
}

func (w *watcher) next() *pb.WatchResponse {
	w.t.Helper()
	r, err := w.stream.Next(background(w.t))
	if err != nil {
		w.t.Fatalf("watch: %v", err)
	}
	out := &pb.WatchResponse{}
	if err := proto.Unmarshal(r.AppendTo(nil, watch.Header{}), out); err != nil {
		w.t.Fatal(err)
	}
	if out.Canceled {
		w.t.Fatalf("watch canceled: %v", out)
	}
	return out
}

// until collects events up to the one of revision rev.
func (w *watcher) until(rev ids.Revision) {
	w.t.Helper()
	for len(w.events) == 0 || ids.Revision(w.events[len(w.events)-1].Kv.ModRevision) < rev {
		w.events = append(w.events, w.next().Events...)
	}
}
