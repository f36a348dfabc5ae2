// Package sim drives whole members through a simulated world.
//
// In: a seed. Out: a trace of everything that happened, and the history that
// clients saw. Always true: one goroutine takes one event after the other from
// one queue, and every choice comes from the seed, so a seed gives the same trace
// each time. Disks lose what was not synced, and hang; the network delays,
// reorders, loses and repeats messages; members crash, also in the middle of
// their file work, and come back with what is left; members are added, promoted
// and removed; who fell behind gets a snapshot.
//
// The members are those of production from the core (replica.Core) down to the
// log; sockets, timers and goroutines are replaced by events, the engine by its
// memory twin.
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
)

// epoch is when the simulated world begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Faults says how hostile the world is. The zero value is a perfect one.
type Faults struct {
	Loss        float64       // share of messages lost
	Duplication float64       // share of messages delivered twice
	MinDelay    time.Duration // of a message
	MaxDelay    time.Duration
	SyncDelay   time.Duration // greatest time of a log write
	ApplyDelay  time.Duration // greatest time of an apply batch
	Partitions  time.Duration // mean time between partitions; 0 = none
	Crashes     time.Duration // mean time between crashes; 0 = none
	Outage      time.Duration // greatest time that a partition or crash lasts
	Stalls      time.Duration // mean time between log disks that hang, for up to twice Outage; 0 = none
	ApplyStalls time.Duration // mean time between stores that hang, likewise
	FullDisks   time.Duration // mean time between log disks that are full, for up to Outage; 0 = none
	// Reconfigs is the mean time between changes of the membership; 0 = none.
	Reconfigs    time.Duration
	TornSteps    float64 // share of the steps of file work in which the power goes
	CutTransfers float64 // share of the snapshots whose connection is cut
	TornWrites   int     // percent of unsynced blocks that survive a crash
	// SameIDs lets members hand out the same numbers for their requests, as they do in
	// real life with bad luck, or when somebody forges entries.
	SameIDs bool
	// Quiet leaves out the workers and watchers: where entries come one by one, members
	// fall behind in other ways than where the store never rests.
	Quiet bool
}

// Hostile is the world of the standard runs.
var Hostile = Faults{
	Loss: 0.02, Duplication: 0.02, MinDelay: 200 * time.Microsecond, MaxDelay: 30 * time.Millisecond,
	SyncDelay: 8 * time.Millisecond, ApplyDelay: 4 * time.Millisecond,
	Partitions: 4 * time.Second, Crashes: 5 * time.Second, Outage: 3 * time.Second, Stalls: 7 * time.Second, ApplyStalls: 5 * time.Second, FullDisks: 6 * time.Second, TornWrites: 50,
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
	rng      *rand.Rand
	faults   Faults
	now      time.Duration
	seq      uint64
	queue    events
	nodes    []*node
	byID     map[uint64]*node
	cut      map[[2]int]bool // links, by the indexes of sender and receiver
	clients  []*client
	configs  map[uint64]string // by applied index
	votes    map[ballot]uint64
	applied  map[uint64]uint64       // digest of what was applied, by index
	entries  map[[16]byte]uint64     // index of each entry, by the checksum of its data
	digests  map[uint64]digest.Point // what members had added up, by index
	gone     map[uint64]uint64       // index at which a member was known to be removed
	changing int                     // changes of the membership that are under way
	strict   bool                    // the check of changes is

	// The workers, and what they are compared with.
	workers     []*worker
	watchers    []*watcher
	without     map[string]bool // kinds of requests that are not made
	model       *model
	answers     map[uint64]*answer // what an entry has to be answered with, by index
	appliedHere map[*pb.InternalRaftRequest]uint64
	leases      leaseRules
	acked       uint64 // index of the newest entry that was acknowledged
	compacted   int64  // newest compaction that was acknowledged
	quota       int64
	did         map[string]int   // requests that were answered, by kind
	proposed    map[[16]byte]int // how often workers and leaders asked for the same bytes, by their checksum

	compared, compactedReads int
	// What the run has met, to tell whether it proves anything.
	changes, torn map[string]int
	installed     int
	overtaken     int  // membership changes that were applied when raft had accepted a snapshot of a later state
	refused       int  // writes of a log that found no room
	never         int  // writes of clients that ended as ones that surely do not happen
	beside        int  // truncations of the log while raft did not know of all that was applied
	calm          bool // no new faults
	trace         traceHash
	out           io.Writer // nil: the trace is only hashed
	err           error     // first thing that went wrong
}

type traceHash struct {
	sum uint64
	n   int
}

func newWorld(seed uint64, f Faults, out io.Writer) *World {
	return &World{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), faults: f,
		byID: make(map[uint64]*node), cut: make(map[[2]int]bool), out: out,
		configs: map[uint64]string{}, votes: map[ballot]uint64{}, applied: map[uint64]uint64{}, digests: map[uint64]digest.Point{}, entries: map[[16]byte]uint64{}, gone: map[uint64]uint64{}, changes: map[string]int{}, torn: map[string]int{},
		without: map[string]bool{}, model: newModel(), answers: map[uint64]*answer{}, appliedHere: map[*pb.InternalRaftRequest]uint64{},
		leases: leaseRules{by: map[int64]*leaseRule{}}, did: map[string]int{}, proposed: map[[16]byte]int{}}
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
		w.err = fmt.Errorf("seed %d at %v: %w", w.seed, w.now, fmt.Errorf(format, args...))
		w.log("FAILED %v", w.err)
	}
}

func (w *World) time() time.Time { return epoch.Add(w.now) }

// after runs do once d has passed.
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

// run takes events until d has passed or something has gone wrong.
func (w *World) run(d time.Duration) {
	end := w.now + d
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// runUntil takes events until done holds, for at most d.
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

// unleash schedules partitions and crashes.
func (w *World) unleash() {
	w.scheduleFault(w.faults.Partitions, w.partition)
	w.scheduleFault(w.faults.Crashes, w.crash)
	w.scheduleFault(w.faults.Stalls, w.stall)
	w.scheduleFault(w.faults.ApplyStalls, w.stallApply)
	w.scheduleFault(w.faults.FullDisks, w.fillDisk)
	w.scheduleFault(w.faults.Reconfigs, w.reconfigure)
}

func (w *World) scheduleFault(mean time.Duration, fault func()) {
	if mean == 0 {
		return
	}
	w.after(w.between(mean/4, 2*mean), func() {
		if w.calm {
			return
		}
		fault()
		w.scheduleFault(mean, fault)
	})
}

// partition cuts one member off, or only one direction of one link.
func (w *World) partition() {
	a := w.rng.IntN(len(w.nodes))
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

// crash takes the power from one member, as long as a quorum is left, and now
// and then from all of them.
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

// stall lets the disk under the log of one member hang, and now and then that of
// all of them.
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

// stallApply lets the store of one member hang, get a little done, and hang again. Often
// the member is cut off as well for a part of that: then it campaigns in the middle
// of a run of apply, or it is sent a snapshot while entries from before still wait
// for its store.
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

// fillDisk leaves no room for the raft log of one member.
func (w *World) fillDisk() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	n.disk.full = w.now + w.between(0, w.faults.Outage)
	w.log("full disk %d until %v", n.index, n.disk.full)
}

// heal ends all faults and brings everyone back.
func (w *World) heal() {
	w.calm = true
	w.log("heal")
	clear(w.cut)
	for _, n := range w.nodes {
		n.stalled = min(n.stalled, w.now+w.faults.Outage)
		n.applyStall = min(n.applyStall, w.now+w.faults.Outage)
		n.disk.full = min(n.disk.full, w.now+w.faults.Outage)
		if n.down {
			n.start()
		}
	}
	w.faults.Loss, w.faults.Duplication = 0, 0
}

// simClock is the clock of the simulated world.
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
