package tcprelay

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// lastResort is the minimum pause between two dials to a failed endpoint while no other is
// active. etcd leaves it inactive until the next probe, so that a restart of the whole
// cluster locks clients out for a minute.
const lastResort = time.Second

// unweighted is the share of connections, one in so many, for endpoints of weight 0 while
// others of their priority have a weight. RFC 2782 asks for a very small chance.
const unweighted = 100

// endpoint is one address. The relay's lock guards the fields that change.
type endpoint struct {
	addr             string
	priority, weight uint16

	down  bool
	tried time.Time // time of a dial that failed, or started as a last resort
}

// failed records a failed dial, and reports whether the endpoint was active.
func (e *endpoint) failed(now time.Time) (was bool) {
	was = !e.down
	e.down, e.tried = true, now
	return was
}

// answered records a successful dial, and reports whether it makes the endpoint active
// again.
func (e *endpoint) answered() (was bool) {
	was, e.down = e.down, false
	return was
}

// endpoints picks an endpoint for each connection. It has no clock or random source of its
// own. The relay's lock guards it.
type endpoints struct {
	all  []*endpoint
	turn int // next among the endpoints without weight
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

// pick returns the endpoint for a connection that has already tried some, nil if none is
// left: an active one of the lowest priority value, by weight, or round-robin without
// weights. If no endpoint at all is active, failed ones are tried again, each at most once
// per lastResort.
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

// lastResort picks among endpoints that have all failed: the best priority first, then the
// one whose last dial is the oldest.
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
		best.tried = now // so that only one of many connections dials it
	}
	return best
}
