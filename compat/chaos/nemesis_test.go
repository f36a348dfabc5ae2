package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"quorate/compat/history"
)

// nemesis injects faults that a seed chooses, several at the same time, and ends each of them. It must be used by
// one goroutine.
type nemesis struct {
	c *cluster
	l *history.Load
	r *rand.Rand

	active   []*fault // by the time at which they end
	busy     map[string]bool
	timeline []string
	counts   map[string]int
}

// fault is a fault that is in effect. takes names what no other fault may touch meanwhile: the process, the disk
// or the clock of a member, or the network.
type fault struct {
	takes []string
	what  string
	until time.Duration
	end   func() error
}

const (
	maxActive   = 3
	roundLength = 12 * time.Second // of faults; then all end, and the cluster must recover
	longest     = 5 * time.Second  // of a fault
)

func newNemesis(c *cluster, l *history.Load, seed uint64) *nemesis {
	return &nemesis{c: c, l: l, r: rand.New(rand.NewPCG(seed, 2)), busy: map[string]bool{}, counts: map[string]int{}}
}

func (n *nemesis) note(format string, args ...any) {
	n.timeline = append(n.timeline, fmt.Sprintf("%7.2fs ", n.l.Since().Seconds())+fmt.Sprintf(format, args...))
}

// String is the end of the timeline.
func (n *nemesis) String() string {
	return strings.Join(n.timeline[max(0, len(n.timeline)-60):], "\n")
}

// round injects faults for a while, ends them all, and waits until the cluster is healthy.
func (n *nemesis) round(length time.Duration) {
	end := n.l.Since() + length
	for n.l.Since() < end {
		if len(n.active) < maxActive {
			n.strike()
		}
		next := n.l.Since() + time.Duration(100+n.r.IntN(1500))*time.Millisecond
		for n.l.Since() < next {
			history.Sleep(n.c.t.Context(), min(20*time.Millisecond, next-n.l.Since()))
			n.expire(n.l.Since())
			n.c.alive()
		}
	}
	n.heal()
	before := n.l.Since()
	n.c.healthy()
	n.note("healthy again after %.2fs", (n.l.Since() - before).Seconds())
}

// heal ends all faults.
func (n *nemesis) heal() { n.expire(1 << 62) }

// expire ends the faults whose time is over.
func (n *nemesis) expire(now time.Duration) {
	for len(n.active) > 0 && n.active[0].until <= now {
		f := n.active[0]
		n.active = n.active[1:]
		for _, what := range f.takes {
			delete(n.busy, what)
		}
		n.note("over: %s", f.what)
		if err := f.end(); err != nil {
			n.c.t.Errorf("end %s: %v", f.what, err)
		}
	}
}

// strike begins one fault, if what it needs is free.
func (n *nemesis) strike() {
	kinds := []struct {
		name   string
		weight int
		begin  func() *fault
	}{
		{"kill", 20, n.killOne}, {"kill several", 8, n.killSeveral}, {"pause", 12, n.pause},
		{"partition", 14, n.partition}, {"one-way cut", 10, n.oneWay}, {"bad network", 14, n.badNetwork},
		{"clock", 12, n.clock}, {"full disk", 8, n.fullDisk}, {"frozen disk", 8, n.frozenDisk}, {"slow disk", 8, n.slowDisk},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	p := n.r.IntN(total)
	for _, k := range kinds {
		if p -= k.weight; p >= 0 {
			continue
		}
		f := k.begin()
		if f == nil {
			return
		}
		for _, what := range f.takes {
			n.busy[what] = true
		}
		f.until += n.l.Since()
		n.active = append(n.active, f)
		slices.SortStableFunc(n.active, func(a, b *fault) int { return int(a.until - b.until) })
		n.counts[k.name]++
		n.note("begin: %s", f.what)
		return
	}
}

// span is how long a fault lasts.
func (n *nemesis) span() time.Duration {
	return 200*time.Millisecond + time.Duration(n.r.Int64N(int64(longest-200*time.Millisecond)))
}

// victim chooses a member, often the leader. ok reports whether the part of it that the fault takes is free.
func (n *nemesis) victim(part string) (i int, takes string, ok bool) {
	i = n.r.IntN(len(n.c.members))
	if n.r.IntN(2) == 0 {
		if l := n.c.leader(); l >= 0 {
			i = l
		}
	}
	takes = fmt.Sprintf("%s %d", part, i)
	return i, takes, !n.busy[takes]
}

func (n *nemesis) killOne() *fault {
	i, takes, ok := n.victim("process")
	if !ok {
		return nil
	}
	n.c.kill(i)
	return &fault{takes: []string{takes}, what: "kill " + n.c.members[i].name, until: n.span() / 2,
		end: func() error { n.c.restart(i); return nil }}
}

// killSeveral kills a majority, or all.
func (n *nemesis) killSeveral() *fault {
	which := n.r.Perm(len(n.c.members))
	if n.r.IntN(2) == 0 {
		which = which[:len(which)/2+1]
	}
	f := &fault{what: "kill", until: n.span() / 3}
	for _, i := range which {
		takes := fmt.Sprintf("process %d", i)
		if n.busy[takes] {
			return nil
		}
		f.takes, f.what = append(f.takes, takes), f.what+" "+n.c.members[i].name
	}
	n.c.kill(which...)
	f.end = func() error { n.c.restart(which...); return nil }
	return f
}

func (n *nemesis) pause() *fault {
	i, takes, ok := n.victim("process")
	if !ok {
		return nil
	}
	n.c.pause(i, true)
	return &fault{takes: []string{takes}, what: "pause " + n.c.members[i].name, until: n.span(),
		end: func() error { n.c.pause(i, false); return nil }}
}

// network is a fault of the network: between sets the rules, all of them are gone at its end.
func (n *nemesis) network(what string, between func(from, to int) rule) *fault {
	if n.busy["network"] {
		return nil
	}
	set := func(f func(from, to int) rule) {
		for from := range len(n.c.members) + 1 {
			for to := range len(n.c.members) + 1 {
				if from != to {
					n.c.w.set(from, to, f(from, to))
				}
			}
		}
	}
	set(between)
	return &fault{takes: []string{"network"}, what: what, until: n.span(),
		end: func() error { set(func(int, int) rule { return rule{} }); return nil }}
}

// partition cuts some members off from the others. Clients reach all of them.
func (n *nemesis) partition() *fault {
	side := map[int]bool{}
	names := ""
	i, _, _ := n.victim("")
	for _, i := range append([]int{i}, n.r.Perm(len(n.c.members))...)[:1+n.r.IntN((len(n.c.members)+1)/2)] {
		if !side[i+1] {
			side[i+1], names = true, names+" "+n.c.members[i].name
		}
	}
	return n.network("partition of"+names, func(from, to int) rule {
		return rule{cut: from > 0 && to > 0 && side[from] != side[to]}
	})
}

// oneWay loses what one member sends to some others, or all of it but acknowledgements of TCP.
func (n *nemesis) oneWay() *fault {
	i, _, _ := n.victim("")
	others, deaf, back := n.r.IntN(1<<len(n.c.members)), n.r.IntN(2) == 0, n.r.IntN(2) == 0
	if others|1<<i == 1<<i {
		others = 1<<len(n.c.members) - 1
	}
	what := fmt.Sprintf("one-way cut, %s to members %b, data only: %v, the other way: %v", n.c.members[i].name, others&^(1<<i), deaf, back)
	return n.network(what, func(from, to int) rule {
		if back {
			from, to = to, from
		}
		hit := from == i+1 && to > 0 && others>>(to-1)&1 == 1
		return rule{cut: hit && !deaf, deaf: hit && deaf}
	})
}

// badNetwork loses, doubles, delays and reorders packets between all machines, those of clients included.
func (n *nemesis) badNetwork() *fault {
	x := rule{loss: n.r.Float64() * 0.15, double: n.r.Float64() * 0.05}
	if n.r.IntN(2) == 0 {
		x.delay = time.Duration(n.r.IntN(60)) * time.Millisecond
		x.jitter = time.Duration(1+n.r.IntN(60)) * time.Millisecond
	}
	return n.network(fmt.Sprintf("bad network: %.0f%% lost, %.0f%% doubled, delay %v + %v", 100*x.loss, 100*x.double, x.delay, x.jitter),
		func(int, int) rule { return x })
}

func (n *nemesis) clock() *fault {
	i, takes, ok := n.victim("clock")
	if !ok || n.c.clocks != nil || n.busy[fmt.Sprintf("process %d", i)] {
		return nil
	}
	by := []time.Duration{2 * time.Second, 30 * time.Second, 10 * time.Minute, 48 * time.Hour, 400 * 24 * time.Hour}[n.r.IntN(5)]
	if n.r.IntN(2) == 0 {
		by = -by
	}
	if err := n.c.jump(i, by); err != nil {
		n.c.t.Errorf("set the clock of %s: %v", n.c.members[i].name, err)
	}
	return &fault{takes: []string{takes}, what: fmt.Sprintf("wall clock of %s %+v", n.c.members[i].name, by), until: n.span(),
		end: func() error { return n.c.jump(i, 0) }}
}

// fullDisk leaves a member no room, or almost none. Real etcd exits on a full disk, so it is spared.
func (n *nemesis) fullDisk() *fault {
	i, takes, ok := n.victim("disk")
	m := n.c.members[i]
	if !ok || m.binary == real {
		return nil
	}
	left := uint64(n.r.IntN(2 << 20))
	if err := m.disk.fill(true, left); err != nil {
		n.c.t.Errorf("fill the disk of %s: %v", m.name, err)
	}
	return &fault{takes: []string{takes}, what: fmt.Sprintf("disk of %s full but for %d KiB", m.name, left>>10), until: n.span(),
		end: func() error { return m.disk.fill(false, 0) }}
}

func (n *nemesis) frozenDisk() *fault {
	i, takes, ok := n.victim("disk")
	if !ok {
		return nil
	}
	m := n.c.members[i]
	if err := m.disk.freeze(true); err != nil {
		n.c.t.Error(err)
	}
	// The disk works again without this goroutine, which may wait for a killed process that waits for the disk.
	span, stop, stopped := n.span(), make(chan struct{}), make(chan error, 1)
	go func() {
		select {
		case <-stop:
		case <-time.After(span):
		}
		stopped <- m.disk.freeze(false)
	}()
	return &fault{takes: []string{takes}, what: "disk of " + m.name + " hangs", until: span,
		end: func() error { close(stop); return <-stopped }}
}

// slowDisk freezes a disk again and again, so that a write takes up to a few hundred milliseconds.
func (n *nemesis) slowDisk() *fault {
	i, takes, ok := n.victim("disk")
	if !ok {
		return nil
	}
	m := n.c.members[i]
	wait := time.Duration(20+n.r.IntN(300)) * time.Millisecond
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := m.disk.freeze(true); err != nil {
				stopped <- err
				return
			}
			history.Sleep(n.c.t.Context(), wait)
			if err := m.disk.freeze(false); err != nil {
				stopped <- err
				return
			}
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(wait / 4):
			}
		}
	}()
	return &fault{takes: []string{takes}, what: fmt.Sprintf("disk of %s takes %v", m.name, wait), until: n.span(),
		end: func() error { close(stop); return <-stopped }}
}
