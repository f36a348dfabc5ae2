// Package sim simulates clusters of whole members deterministically.
//
// In: a seed. Out: a trace of all events, and the history that clients saw. Always true:
// one goroutine takes events from one queue, and every choice is drawn from the seed, so a
// seed gives the same trace each time. Disks hang and lose unsynced data; the network
// delays, reorders, loses and duplicates messages; members crash, also in the middle of
// file work, and restart from what is left; members are added, promoted and removed;
// members that have fallen behind get snapshots.
//
// Everything from the core (replica.Core) down to the log is production code. Sockets,
// timers and goroutines are replaced by events, the storage engine by one in memory.
package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/digest"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// epoch is the wall-clock time at which the simulation starts.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Faults says how often faults happen. The zero value has none.
type Faults struct {
	Loss        float64       // share of messages lost
	Duplication float64       // share of messages delivered twice
	MinDelay    time.Duration // of a message
	MaxDelay    time.Duration
	SyncDelay   time.Duration // greatest duration of a log write
	ApplyDelay  time.Duration // greatest duration of an apply batch
	Partitions  time.Duration // mean time between partitions; 0 = none
	Crashes     time.Duration // mean time between crashes; 0 = none
	Outage      time.Duration // greatest duration of a partition or crash
	Stalls      time.Duration // mean time between hanging log disks, for up to twice Outage; 0 = none
	ApplyStalls time.Duration // mean time between hanging stores, likewise
	FullDisks   time.Duration // mean time between full log disks, for up to Outage; 0 = none
	ClockJumps  time.Duration // mean time between jumps of a member's wall clock, by up to an hour; 0 = none
	// Upgrades is the mean time between restarts of a member in another release; 0 = none.
	Upgrades time.Duration
	// Conversions is the mean time between conversions of a member's directory into one of
	// etcd 3.5, and back; 0 = none.
	Conversions time.Duration
	// Reconfigs is the mean time between membership changes; 0 = none.
	Reconfigs    time.Duration
	TornSteps    float64 // share of the steps of file work that are interrupted by a crash
	CutTransfers float64 // share of the snapshot transfers whose connection is cut
	TornWrites   int     // percent of unsynced blocks that survive a crash
	// SameIDs makes members generate the same request ids, as happens in production with
	// bad luck, or when someone forges entries.
	SameIDs bool
	// Auth gives the workers users, whose roles and permissions change.
	Auth bool
	// Quiet leaves out the workers and watchers. When entries come one by one, members fall
	// behind in other ways than under constant load.
	Quiet bool
}

// Hostile is the world of the standard runs.
var Hostile = Faults{
	Loss: 0.02, Duplication: 0.02, MinDelay: 200 * time.Microsecond, MaxDelay: 30 * time.Millisecond,
	SyncDelay: 8 * time.Millisecond, ApplyDelay: 4 * time.Millisecond,
	Partitions: 4 * time.Second, Crashes: 5 * time.Second, Outage: 3 * time.Second, Stalls: 7 * time.Second, ApplyStalls: 5 * time.Second, FullDisks: 6 * time.Second, TornWrites: 50, ClockJumps: 6 * time.Second,
	Reconfigs: time.Second, TornSteps: 0.1, CutTransfers: 0.2,
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return x
}

// World is one simulated cluster with its clients.
type World struct {
	seed     uint64
	plan     Plan
	set      Settings
	rng      *rand.Rand
	faults   Faults
	now      time.Duration
	seq      uint64
	queue    events
	nodes    []*node
	byID     map[ids.Member]*node
	cut      map[[2]int]bool // links, by the indexes of sender and receiver
	clients  []*client
	configs  map[ids.Index]string // by applied index
	votes    map[ballot]ids.Member
	applied  map[ids.Index]uint64       // digest of the entry that was applied, by index
	entries  map[[16]byte]uint64        // index of each entry, by the checksum of its data
	written  map[ids.Index]digest.Point // what the entry of an index adds to the integrity digest
	digests  map[summed]digest.Point    // integrity digests
	gone     map[ids.Member]ids.Index   // index of the removal, by member id
	changing int                        // membership changes in flight
	lowering bool                       // a downgrade was requested a moment ago
	strict   bool                       // --strict-reconfig-check

	// The workers, and the model that their answers are compared with.
	workers     []*worker
	watchers    []*watcher
	without     map[string]bool // kinds of requests that are not made
	model       *model
	answers     map[ids.Index]*answer // expected answer, by index
	appliedHere map[*pb.InternalRaftRequest]ids.Index
	leases      leaseRules
	acked       ids.Index    // index of the newest entry that was acknowledged
	compacted   ids.Revision // newest compaction that was acknowledged
	revs        []revAt
	did         map[string]int   // requests that were answered, by kind
	proposed    map[[16]byte]int // how often workers and leaders asked for the same bytes, by their checksum

	compared, compactedReads int
	// Counters that show whether the run exercised what it should.
	changes, torn map[string]int
	happened      map[string]int // faults, by kind
	installed     int
	overtaken     int  // membership changes applied after raft had accepted a later snapshot
	refused       int  // log writes that found the disk full
	never         int  // client writes that failed as certainly not executed
	beside        int  // truncations while raft's applied index was behind the store's
	calm          bool // no new faults
	trace         traceHash
	out           io.Writer // nil: the trace is only hashed
	err           error     // first failure
	failed        string    // what kind of failure that is
	progress      time.Duration
	bug           func(*node) error // put in by a test; called before each step
}

// revAt is when a revision was made.
type revAt struct {
	at  time.Duration
	rev ids.Revision
}

type traceHash struct {
	sum uint64
	n   int
}

func newWorld(seed uint64, f Faults, out io.Writer) *World {
	return &World{seed: seed, plan: Plan{Seed: seed}, set: usual(seed), rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), faults: f,
		byID: make(map[ids.Member]*node), cut: make(map[[2]int]bool), out: out,
		configs: map[ids.Index]string{}, votes: map[ballot]ids.Member{}, applied: map[ids.Index]uint64{}, written: map[ids.Index]digest.Point{}, digests: map[summed]digest.Point{}, entries: map[[16]byte]uint64{}, gone: map[ids.Member]ids.Index{}, changes: map[string]int{}, torn: map[string]int{}, happened: map[string]int{},
		without: map[string]bool{}, model: newModel(), answers: map[ids.Index]*answer{}, appliedHere: map[*pb.InternalRaftRequest]ids.Index{},
		leases: leaseRules{by: map[lease.ID]*leaseRule{}}, did: map[string]int{}, proposed: map[[16]byte]int{}}
}

// log adds a line to the trace.
func (w *World) log(format string, args ...any) {
	line := fmt.Sprintf("%12d %s\n", w.now.Microseconds(), fmt.Sprintf(format, args...))
	h := fnv.New64a()
	fmt.Fprintf(h, "%x", w.trace.sum)
	io.WriteString(h, line)
	w.trace.sum = h.Sum64()
	w.trace.n++
	if w.out != nil {
		io.WriteString(w.out, line)
	}
}

func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.failed = format
		w.err = fmt.Errorf("seed %d at %v: %w", w.seed, w.now, fmt.Errorf(format, args...))
		w.log("FAILED %v", w.err)
	}
}

func (w *World) time() time.Time { return epoch.Add(w.now) }

// after schedules do to run in d.
func (w *World) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{at: w.now + d, seq: w.seq, do: do})
}

// between returns a random time in [lo, hi).
func (w *World) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

func (w *World) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// run processes events until d has passed or a check has failed.
func (w *World) run(d time.Duration) {
	end := w.now + d
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	if w.err == nil {
		w.now = end
	}
}

// runUntil processes events until done returns true, for at most d. It reports whether done
// was true.
func (w *World) runUntil(d time.Duration, done func() bool) bool {
	for end := w.now + d; w.now < end; {
		if done() {
			return true
		}
		w.run(10 * time.Millisecond)
		if w.err != nil {
			return false
		}
	}
	return done()
}

// unleash schedules the faults.
func (w *World) unleash() {
	w.scheduleFault("partition", w.faults.Partitions, w.partition)
	w.scheduleFault("crash", w.faults.Crashes, w.crash)
	w.scheduleFault("stall", w.faults.Stalls, w.stall)
	w.scheduleFault("stall of apply", w.faults.ApplyStalls, w.stallApply)
	w.scheduleFault("full disk", w.faults.FullDisks, w.fillDisk)
	w.scheduleFault("clock jump", w.faults.ClockJumps, w.jumpClock)
	w.scheduleFault("release", w.faults.Upgrades, w.changeRelease)
	w.scheduleFault("conversion", w.faults.Conversions, w.convert)
	w.scheduleFault("reconfigure", w.faults.Reconfigs, w.reconfigure)
}

// scheduleFault lets a fault happen again and again until the world is calm. When faults
// happen, and what each does, is drawn apart from everything else.
func (w *World) scheduleFault(kind string, mean time.Duration, fault func()) {
	if mean == 0 {
		return
	}
	times := w.plan.faultRand(kind, -1)
	var next func()
	next = func() {
		w.after(mean/4+time.Duration(times.Int64N(int64(2*mean-mean/4))), func() {
			if w.calm {
				return
			}
			n := w.happened[kind]
			w.happened[kind]++
			if !w.plan.skips(kind, n) {
				w.with(w.plan.faultRand(kind, n), fault)
			}
			next()
		})
	}
	next()
}

// with runs do with another random source.
func (w *World) with(rng *rand.Rand, do func()) {
	old := w.rng
	defer func() { w.rng = old }()
	w.rng = rng
	do()
}

// partition isolates one member, or cuts one direction of one link.
func (w *World) partition() {
	a := w.rng.IntN(len(w.nodes))
	if len(w.nodes) == 1 {
		return
	}
	if w.rng.IntN(2) == 0 {
		w.cutOff(a)
		return
	}
	w.cutLinks([][2]int{{a, (a + 1 + w.rng.IntN(len(w.nodes)-1)) % len(w.nodes)}})
}

func (w *World) cutOff(a int) {
	var links [][2]int
	for b := range w.nodes {
		if b != a {
			links = append(links, [2]int{a, b}, [2]int{b, a})
		}
	}
	w.cutLinks(links)
}

func (w *World) cutLinks(links [][2]int) {
	for _, l := range links {
		w.cut[l] = true
	}
	w.log("cut %v", links)
	w.after(w.between(0, w.faults.Outage), func() {
		for _, l := range links {
			delete(w.cut, l)
		}
		w.log("mend %v", links)
	})
}

// crash crashes one member, and sometimes all of them.
func (w *World) crash() {
	victims := []*node{w.nodes[w.rng.IntN(len(w.nodes))]}
	if w.rng.IntN(6) == 0 {
		victims = w.nodes
	}
	for _, n := range victims {
		if n.down {
			continue
		}
		n.crash(n.disk.crashed())
		w.after(w.between(10*time.Millisecond, w.faults.Outage), n.start)
	}
}

// stall lets the log disk of one member hang, and sometimes those of all members.
func (w *World) stall() {
	victims := []*node{w.nodes[w.rng.IntN(len(w.nodes))]}
	if w.rng.IntN(6) == 0 {
		victims = w.nodes
	}
	for _, n := range victims {
		n.stalled = w.now + w.between(0, 2*w.faults.Outage)
		w.log("stall %d until %v", n.index, n.stalled)
	}
}

// stallApply lets the store of one member hang, make a little progress, and hang again.
// Often the member is isolated for a part of that time: then it campaigns in the middle of a
// run of apply, or it gets a snapshot while earlier entries still wait for its store.
func (w *World) stallApply() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	first, breath, second := w.between(0, 2*w.faults.Outage), w.between(0, 2*w.faults.ApplyDelay), w.between(0, 2*w.faults.Outage)
	hang := func(d time.Duration) {
		if !w.calm {
			n.applyStall = w.now + d
			w.log("stall of apply %d until %v", n.index, n.applyStall)
		}
	}
	hang(first)
	w.after(first+breath, func() { hang(second) })
	if w.rng.IntN(3) > 0 {
		w.after(w.between(0, first+second), func() {
			if !w.calm {
				w.cutOff(n.index)
			}
		})
	}
}

// fillDisk fills the log disk of one member.
func (w *World) fillDisk() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	n.disk.full = w.now + w.between(0, w.faults.Outage)
	w.log("full disk %d until %v", n.index, n.disk.full)
}

// jumpClock lets the wall clock of one member jump, forward or back.
func (w *World) jumpClock() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	n.jump = w.between(-time.Hour, time.Hour)
	w.log("clock of %d is wrong by %v", n.index, n.jump)
}

// heal stops all faults and restarts the members that are down.
func (w *World) heal() {
	w.calm = true
	w.log("heal")
	clear(w.cut)
	for _, n := range w.nodes {
		n.stalled = min(n.stalled, w.now+w.faults.Outage)
		n.applyStall = min(n.applyStall, w.now+w.faults.Outage)
		n.disk.full = min(n.disk.full, w.now+w.faults.Outage)
		n.jump = 0
		if n.down {
			n.start()
		}
	}
	w.faults.Loss, w.faults.Duplication = 0, 0
}

// simClock is the clock of the simulation.
type simClock struct{ w *World }

func (c simClock) Now() time.Time { return c.w.time() }

func (c simClock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	waits := true
	c.w.after(d, func() {
		if waits {
			waits = false
			f()
		}
	})
	return func() bool {
		was := waits
		waits = false
		return was
	}
}
