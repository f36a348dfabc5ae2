package sim

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Shrink looks for a plan that fails as p does and has less in it: a shorter time, fewer
// clients and members, fewer kinds of faults and requests, usual settings, and of the faults
// that are left only those that are needed. It runs at most budget plans; run must run a
// plan from a fresh random source. It returns the smallest plan that fails and what its run
// has met.
func Shrink(p Plan, budget int, run func(Plan) (Result, error)) (Plan, Result, error) {
	s := &shrinker{run: run, left: budget}
	first, err := run(p)
	if err == nil {
		return p, first, nil
	}
	s.plan, s.res, s.err = p, first, err
	// The time is cut last: whatever else changes a plan moves the failure in time.
	for more := true; more && s.left > budget/8; {
		before := s.plan.String()
		s.leaveOut()
		s.diminish()
		s.skipFaults()
		more = s.plan.String() != before
	}
	s.shorten()
	return s.plan, s.res, s.err
}

type shrinker struct {
	run  func(Plan) (Result, error)
	left int // runs
	plan Plan
	res  Result
	err  error
}

// try keeps a plan if it fails in the same way.
func (s *shrinker) try(change func(*Plan)) bool {
	if s.left == 0 {
		return false
	}
	p := s.plan
	p.Without, p.Skip = slices.Clone(p.Without), maps.Clone(p.Skip)
	if p.Skip == nil {
		p.Skip = map[string][]int{}
	}
	if change(&p); p.String() == s.plan.String() {
		return false
	}
	s.left--
	res, err := s.run(p)
	if err == nil || res.Failed != s.res.Failed {
		return false
	}
	s.plan, s.res, s.err = p, res, err
	return true
}

// shorten cuts the time to that of the failure, and looks for the shortest time under faults after which a run fails.
func (s *shrinker) shorten() {
	s.try(func(p *Plan) { p.Length = min(p.Length, s.res.End+time.Millisecond) })
	low := time.Duration(0)
	for range 8 {
		mid := (low + s.plan.Length) / 2
		if s.plan.Length-mid < 50*time.Millisecond || !s.try(func(p *Plan) { p.Length = mid }) {
			low = mid
		}
	}
}

// leaveOut switches off kinds of faults and requests.
func (s *shrinker) leaveOut() {
	for _, change := range []func(*Plan){
		func(p *Plan) { p.Faults.Quiet = true },
		func(p *Plan) { p.Faults.Reconfigs = 0 },
		func(p *Plan) { p.Faults.Partitions = 0 },
		func(p *Plan) { p.Faults.Crashes = 0 },
		func(p *Plan) { p.Faults.Stalls = 0 },
		func(p *Plan) { p.Faults.ApplyStalls = 0 },
		func(p *Plan) { p.Faults.FullDisks = 0 },
		func(p *Plan) { p.Faults.ClockJumps = 0 },
		func(p *Plan) { p.Faults.Upgrades = 0 },
		func(p *Plan) { p.Faults.Conversions = 0 },
		func(p *Plan) { p.Faults.TornSteps = 0 },
		func(p *Plan) { p.Faults.CutTransfers = 0 },
		func(p *Plan) { p.Faults.Loss = 0 },
		func(p *Plan) { p.Faults.Duplication = 0 },
		func(p *Plan) { p.Faults.TornWrites = 0 },
		func(p *Plan) { p.Faults.SameIDs = false },
		func(p *Plan) { p.Faults.Auth = false },
	} {
		s.try(change)
	}
	if s.plan.Faults.Quiet {
		return
	}
	for _, kind := range allKinds {
		s.try(func(p *Plan) {
			if !slices.Contains(p.Without, kind) {
				p.Without = append(p.Without, kind)
			}
		})
	}
}

// diminish takes away clients, members and unusual settings.
func (s *shrinker) diminish() {
	s.try(func(p *Plan) { p.Settings = usual(p.Seed) })
	for _, n := range []int{1, s.plan.Clients / 2, s.plan.Clients - 1} {
		if n > 0 && n < s.plan.Clients && s.try(func(p *Plan) { p.Clients = n }) {
			break
		}
	}
	for _, n := range []int{1, 3, 5} {
		if n < s.plan.Members && s.try(func(p *Plan) { p.Members = n }) {
			break
		}
	}
}

// skipFaults leaves out those of the faults that are not needed, first many at once.
func (s *shrinker) skipFaults() {
	type fault struct {
		kind string
		n    int
	}
	var all []fault
	for _, kind := range slices.Sorted(maps.Keys(s.res.Happened)) {
		for n := range s.res.Happened[kind] {
			if !s.plan.skips(kind, n) {
				all = append(all, fault{kind, n})
			}
		}
	}
	for size := (len(all) + 1) / 2; size > 0; size /= 2 {
		for i := 0; i < len(all); {
			chunk := all[i:min(i+size, len(all))]
			if s.try(func(p *Plan) {
				for _, f := range chunk {
					p.Skip[f.kind] = append(slices.Clone(p.Skip[f.kind]), f.n)
				}
			}) {
				all = slices.Delete(all, i, i+len(chunk))
			} else {
				i += cmp.Or(len(chunk), 1)
			}
		}
	}
}
