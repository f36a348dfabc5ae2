package tcprelay

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// lastResort is how long an endpoint that failed is left alone when there is no
// other. etcd leaves it alone until the next probe, so that a restart of the whole
// cluster keeps clients out for a minute.
const lastResort = time.Second

// unweighted is the share of connections, one in so many, for the endpoints of
// weight 0 while others of their priority have a weight. RFC 2782 asks for a very
// small chance.
const unweighted = 100

// endpoint is one address. The relay's lock guards what changes.
type endpoint struct {
	addr             string
	priority, weight uint16

	down  bool
	tried time.Time // of a dial that failed, or was begun as a last resort
}

// failed notes a dial that failed, and reports whether the endpoint was active.
func (e *endpoint) failed(now time.Time) (was bool) {
	was = !e.down
	e.down, e.tried = true, now
	return was
}

// answered notes a dial that went well, and reports whether that makes the
// endpoint active again.
func (e *endpoint) answered() (was bool) {
	was, e.down = e.down, false
	return was
}

// endpoints picks one for each connection. It has no clock and no random source
// of its own, and is guarded by the relay's lock.
type endpoints struct {
	all  []*endpoint
	turn int // of those that have no weight
	intN func(n int) int
}

func newEndpoints(records []net.SRV, intN func(n int) int) endpoints {
	s := endpoints{intN: intN}
	for _, r := range records {
		s.all = append(s.all, &endpoint{
			addr:     net.JoinHostPort(r.Target, strconv.Itoa(int(r.Port))),
			priority: r.Priority, weight: r.Weight,
		})
	}
	return s
}

func (s *endpoints) addrs() []string {
	var out []string
	for _, e := range s.all {
		out = append(out, e.addr)
	}
	return out
}

func (s *endpoints) inactive() []*endpoint {
	var out []*endpoint
	for _, e := range s.all {
		if e.down {
			out = append(out, e)
		}
	}
	return out
}

// pick returns the endpoint for a connection that has tried some already, nil if
// there is none left: an active one of the lowest priority value, by weight; in
// turn where no weights are given. If none at all is active, those that failed get
// another chance, each once in lastResort.
func (s *endpoints) pick(now time.Time, tried []*endpoint) *endpoint {
	var weighted, others []*endpoint
	sum, active := 0, false
	best := uint16(0)
	for _, e := range s.all {
		if e.down {
			continue
		}
		active = true
		if slices.Contains(tried, e) {
			continue
		}
		if len(weighted)+len(others) > 0 {
			if e.priority > best {
				continue
			}
			if e.priority < best {
				weighted, others, sum = nil, nil, 0
			}
		}
		best = e.priority
		if e.weight > 0 {
			weighted = append(weighted, e)
			sum += int(e.weight)
		} else {
			others = append(others, e)
		}
	}
	switch {
	case !active:
		return s.lastResort(now, tried)
	case len(weighted) > 0 && (len(others) == 0 || s.intN(unweighted) > 0):
		n := s.intN(sum)
		for _, e := range weighted {
			if n -= int(e.weight); n < 0 {
				return e
			}
		}
	case len(others) > 0:
		e := others[s.turn%len(others)]
		s.turn = (s.turn + 1) % (1 << 30)
		return e
	}
	return nil
}

// lastResort picks among endpoints that have all failed: the best priority first,
// then the one that has been left alone for the longest.
func (s *endpoints) lastResort(now time.Time, tried []*endpoint) *endpoint {
	var best *endpoint
	for _, e := range s.all {
		if now.Sub(e.tried) < lastResort || slices.Contains(tried, e) {
			continue
		}
		if best == nil || e.priority < best.priority || e.priority == best.priority && e.tried.Before(best.tried) {
			best = e
		}
	}
	if best != nil {
		best.tried = now // so that of many connections one dials
	}
	return best
}
