package tcprelay

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// set returns endpoints a, b, c … with the given priority/weight pairs.
func set(intN func(int) int, of ...[2]uint16) endpoints {
	var records []net.SRV
	for i, pw := range of {
		records = append(records, net.SRV{Target: string(rune('a' + i)), Port: 1, Priority: pw[0], Weight: pw[1]})
	}
	return newEndpoints(records, intN)
}

// picks counts which of the endpoints are picked in n turns.
func picks(s *endpoints, n int) map[string]int {
	out := map[string]int{}
	for range n {
		if e := s.pick(noon, nil); e != nil {
			out[e.addr[:1]]++
		} else {
			out["none"]++
		}
	}
	return out
}

func TestPickShares(t *testing.T) {
	for _, tc := range []struct {
		name string
		of   [][2]uint16
		down string
		want map[string]float64 // share of 100,000 picks, within half a percent of all picks
	}{
		{name: "all alike", of: [][2]uint16{{0, 0}, {0, 0}, {0, 0}, {0, 0}}, want: map[string]float64{"a": 25, "b": 25, "c": 25, "d": 25}},
		{name: "one of them down", of: [][2]uint16{{0, 0}, {0, 0}, {0, 0}}, down: "b", want: map[string]float64{"a": 50, "c": 50}},
		{name: "equal weights", of: [][2]uint16{{0, 1}, {0, 1}}, want: map[string]float64{"a": 50, "b": 50}},
		{name: "weights", of: [][2]uint16{{0, 10}, {0, 60}, {0, 30}}, want: map[string]float64{"a": 10, "b": 60, "c": 30}},
		{name: "weights, the heaviest down", of: [][2]uint16{{0, 10}, {0, 60}, {0, 30}}, down: "b", want: map[string]float64{"a": 25, "c": 75}},
		{name: "weight 0 beside others", of: [][2]uint16{{0, 0}, {0, 60}, {0, 40}}, want: map[string]float64{"a": 1, "b": 59.4, "c": 39.6}},
		{name: "priority before weight", of: [][2]uint16{{2, 60000}, {1, 1}, {1, 3}}, want: map[string]float64{"b": 25, "c": 75}},
		{name: "the next priority in need", of: [][2]uint16{{2, 0}, {1, 1}, {2, 0}, {3, 9}}, down: "b", want: map[string]float64{"a": 50, "c": 50}},
		{name: "in turn within the priority", of: [][2]uint16{{1, 0}, {0, 0}, {0, 0}, {1, 0}}, want: map[string]float64{"b": 50, "c": 50}},
		{name: "the largest values", of: [][2]uint16{{65535, 65535}, {65535, 65535}}, want: map[string]float64{"a": 50, "b": 50}},
		{name: "nothing", want: map[string]float64{"none": 100}},
	} {
		s := set(rand.New(rand.NewPCG(1, 2)).IntN, tc.of...)
		for _, e := range s.all {
			if e.addr[:1] == tc.down {
				e.failed(noon)
			}
		}
		got := picks(&s, 100_000)
		for name, share := range tc.want {
			if p := float64(got[name]) / 1000; p < share-0.5 || p > share+0.5 {
				t.Errorf("%s: %s gets %.1f %% of the connections, want %.1f; all: %v", tc.name, name, p, share, got)
			}
		}
		if len(got) != len(tc.want) {
			t.Errorf("%s: picked %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestPickInTurn(t *testing.T) {
	s := set(nil, [2]uint16{}, [2]uint16{}, [2]uint16{})
	got := ""
	for range 7 {
		got += s.pick(noon, nil).addr[:1]
	}
	if got != "abcabca" {
		t.Errorf("picked %s, want abcabca", got)
	}
}

// The boundaries between weights are the sums of the weights before them.
func TestPickBorders(t *testing.T) {
	for n, want := range map[int]string{0: "a", 1: "a", 2: "b", 6: "b", 7: "c"} {
		s := set(func(sum int) int {
			if sum != 8 {
				t.Fatalf("random number below %d, want 8", sum)
			}
			return n
		}, [2]uint16{0, 2}, [2]uint16{0, 5}, [2]uint16{0, 1})
		if got := s.pick(noon, nil).addr[:1]; got != want {
			t.Errorf("%d of 8 picks %s, want %s", n, got, want)
		}
	}
}

// One connection tries each endpoint at most once, best first.
func TestPickTriesEachOnce(t *testing.T) {
	s := set(func(int) int { return 0 }, [2]uint16{2, 0}, [2]uint16{1, 5}, [2]uint16{1, 5}, [2]uint16{3, 1})
	var tried []*endpoint
	got := ""
	for e := s.pick(noon, nil); e != nil; e = s.pick(noon, tried) {
		tried = append(tried, e)
		got += e.addr[:1]
		if e.failed(noon); len(tried) == 2 {
			tried[0].answered() // a probe in between does not make it available again for this connection
		}
	}
	if got != "bcad" {
		t.Errorf("tried %s, want bcad", got)
	}
}

// When all have failed, one connection a second tries each of them again, not all
// connections.
func TestPickLastResort(t *testing.T) {
	s := set(nil, [2]uint16{1, 0}, [2]uint16{0, 0}, [2]uint16{0, 0})
	for i, e := range s.all {
		e.failed(noon.Add(-time.Duration(i) * 10 * time.Millisecond))
	}
	for _, step := range []struct {
		at   time.Duration
		want string
	}{
		{0, "-"},
		{lastResort - 20*time.Millisecond, "c"}, // its last dial is the oldest
		{lastResort - 20*time.Millisecond, "-"},
		{lastResort + time.Millisecond, "b"}, // before a, by priority
		{lastResort + time.Millisecond, "a"},
		{lastResort + time.Millisecond, "-"},
		{2 * lastResort, "c"},
	} {
		got := "-"
		if e := s.pick(noon.Add(step.at), nil); e != nil {
			got = e.addr[:1]
		}
		if got != step.want {
			t.Errorf("after %v picked %s, want %s", step.at, got, step.want)
		}
	}
	s.all[0].answered()
	if got := fmt.Sprint(picks(&s, 10)); got != "map[a:10]" {
		t.Errorf("with one active again picked %s, want it alone", got)
	}
}
