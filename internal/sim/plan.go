package sim

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"time"

	"quorate/internal/raftnode"
)

// Plan is everything that a run depends on: two runs of one plan give the same trace.
type Plan struct {
	Seed     uint64
	Members  int // founders
	Clients  int
	Length   time.Duration // of the time under faults
	Faults   Faults
	Settings Settings
	// Without are the kinds of requests that workers do not make.
	Without []string `json:",omitempty"`
	// Skip are the faults that do not happen, by kind and number. Each fault draws from a
	// random source of its own, so that the others stay what and when they are.
	Skip map[string][]int `json:",omitempty"`
}

// Settings are what an operator or a constant of production sets; they must not matter for
// any promise.
type Settings struct {
	// TruncateAfter is the snapshot count, CatchUp the number of entries retained for slow
	// followers. Small ones make a member that was down for a moment need a snapshot.
	TruncateAfter, CatchUp uint64
	MaxRunBytes            int // of a run of apply
	SegmentBytes           int64
	CacheBytes             int64 // of the log; 0 is production's
	Requests               int   // in flight at a member
	CompactionBatch        int   // records in a step of a compaction
	// CheckpointEvery is shorter than most TTLs; 0 disables checkpoints.
	CheckpointEvery time.Duration
	PreVote         bool
	Quota           int64         // of the store; 0 is none
	Retention       time.Duration // of automatic compaction; 0 is none
	Raft            raftnode.Limits
}

// usual are the settings of tests that are not about settings.
func usual(seed uint64) Settings {
	s := Settings{TruncateAfter: 30, CatchUp: 4, MaxRunBytes: 4 << 10, SegmentBytes: 64 << 10, Requests: 1000, PreVote: true}
	if seed%2 == 1 {
		s.CheckpointEvery = 2 * time.Second
	}
	return s
}

// PlanOf draws the size of the cluster and its settings from the seed. Of eight seeds one
// has a cluster of 1, four of 3, two of 5 and one of 7 members.
func PlanOf(seed uint64, clients int, length time.Duration, f Faults) Plan {
	rng := rand.New(rand.NewPCG(seed, 0xd1b54a32d192ed03))
	p := Plan{Seed: seed, Clients: clients, Length: length, Faults: f, Settings: usual(seed)}
	p.Members = []int{3, 3, 5, 1, 3, 7, 3, 5}[(seed+seed/8)%8]
	if p.Members > 3 { // a larger cluster does more work for each request
		p.Length = length / 2
		p.Clients = max(1, clients-2)
	}
	if rng.IntN(2) == 0 {
		return p // small values find most
	}
	s := &p.Settings
	s.TruncateAfter, s.CatchUp = pick[uint64](rng, 1, 10, 30, 100, 1000), pick[uint64](rng, 0, 1, 4, 50)
	s.MaxRunBytes = pick(rng, 1, 512, 4<<10, 1<<20)
	s.SegmentBytes = pick[int64](rng, 8<<10, 64<<10, 1<<20)
	s.CacheBytes = pick[int64](rng, 0, 1, 4<<10)
	s.Requests = pick(rng, 3, 20, 1000)
	s.CompactionBatch = pick(rng, 1, 7, 700)
	s.PreVote = rng.IntN(4) > 0
	if s.Quota = pick[int64](rng, 0, 8<<10, 16<<10); f.Quiet { // nobody disarms the alarm
		s.Quota = 0
	}
	s.Retention = pick(rng, 0, 2*time.Second, 5*time.Second)
	s.Raft = raftnode.Limits{MessageBytes: pick[uint64](rng, 0, 1, 500, 10<<10), Inflight: pick(rng, 0, 1, 3, 64),
		ApplyBytes: pick[uint64](rng, 0, 1, 1000, 100<<10), ProposalBytes: pick(rng, 0, 1, 1000)}
	return p
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// String returns the plan as the argument of -plan.
func (p Plan) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// skips reports whether the nth fault of a kind does not happen.
func (p Plan) skips(kind string, n int) bool { return slices.Contains(p.Skip[kind], n) }

// faultRand is the random source of the nth fault of a kind, or with n = -1 that of when
// they happen.
func (p Plan) faultRand(kind string, n int) *rand.Rand {
	h := p.Seed
	for _, c := range []byte(kind) {
		h = h*0x100000001b3 ^ uint64(c)
	}
	return rand.New(rand.NewPCG(h, uint64(n)))
}
