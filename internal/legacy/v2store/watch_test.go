package v2store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/legacy/v2request"
)

// got returns what waits in a watcher, as "action key@index", and "closed" if no more will
// come.
func got(w *Watcher) (out []string) {
	for {
		select {
		case e, ok := <-w.Events():
			if !ok {
				return append(out, "closed")
			}
			out = append(out, fmt.Sprintf("%s %s@%d", e.Action, strings.TrimPrefix(e.Node.Key, "/1"), e.Index()))
		default:
			return out
		}
	}
}

func (f *fixture) watch(p string, recursive, stream bool, since uint64) *Watcher {
	f.t.Helper()
	w, err := f.s.Watch(p, recursive, stream, since)
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

func TestWatchLive(t *testing.T) {
	type watch struct {
		path              string
		recursive, stream bool
		since             uint64
		want              []string
	}
	del := all(method("DELETE"), recursive)
	for name, c := range map[string]struct {
		ops     []v2request.Request
		watches []watch
	}{
		"one event or all": {
			[]v2request.Request{put("/a", "1"), put("/a", "2"), put("/ab", "3")},
			[]watch{
				{"/1/a", false, false, 0, []string{"set /a@4"}},
				{"/1/a/", false, true, 0, []string{"set /a@4", "set /a@5"}},
				{"/1/a", true, true, 5, []string{"set /a@5"}},
				{"/1/a", false, false, 9, nil},
				{"/1", false, true, 0, nil},
				{"/1", true, true, 0, []string{"set /a@4", "set /a@5", "set /ab@6"}},
				{"/", true, true, 0, []string{"set /a@4", "set /a@5", "set /ab@6"}},
				{"/1/b", true, true, 0, nil},
			},
		},
		"hidden nodes": {
			[]v2request.Request{put("/d/_h/x", "1"), put("/d/_y", "1"), put("/d/z_", "1")},
			[]watch{
				{"/1/d", true, true, 0, []string{"set /d/z_@6"}},
				{"/1", true, true, 0, []string{"set /d/z_@6"}},
				{"/1/d/_h", true, true, 0, []string{"set /d/_h/x@4"}},
				{"/1/d/_h/x", false, true, 0, []string{"set /d/_h/x@4"}},
				{"/1/d/_y", false, true, 0, []string{"set /d/_y@5"}},
			},
		},
		"what goes with a directory": {
			[]v2request.Request{put("/d/e/x", "1"), with(put("/d", ""), del)},
			[]watch{
				{"/1/d/e/x", false, false, 5, []string{"delete /d@5"}},
				{"/1/d/e/x", true, true, 5, []string{"delete /d@5"}},
				{"/1/d/e", false, true, 5, []string{"delete /d@5"}},
				{"/1/d/e/y", true, true, 5, nil},
				{"/1/d", false, true, 5, []string{"delete /d@5"}},
				{"/1/d", true, true, 5, []string{"delete /d@5"}},
				{"/1", true, true, 5, []string{"delete /d@5"}},
				{"/1/dd", true, true, 5, nil},
			},
		},
		"refreshes and expiry": {
			[]v2request.Request{with(put("/d", ""), all(dir, ttl(3))), with(put("/d/x", "1"), ttl(9)), with(put("/b", "1"), ttl(2)), with(put("/a", "1"), ttl(2)),
				with(put("/b", ""), all(refresh, exist, ttl(2))), expireAt(start.Add(3 * time.Second)), expireAt(start.Add(time.Hour))},
			[]watch{
				{"/1", true, true, 8, []string{"expire /a@9", "expire /b@10", "expire /d@11"}},
				{"/1/d/x", false, true, 8, []string{"expire /d@11"}},
				{"/1/b", false, true, 8, []string{"expire /b@10"}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			var ws []*Watcher
			for _, w := range c.watches {
				ws = append(ws, f.watch(w.path, w.recursive, w.stream, w.since))
			}
			for _, r := range c.ops {
				f.do(r)
			}
			if n := f.s.Stats().Watchers; n > uint64(len(ws)) {
				t.Errorf("%d watchers, want at most %d", n, len(ws))
			}
			for i, w := range c.watches {
				if g := got(ws[i]); !slices.Equal(g, w.want) {
					t.Errorf("%+v: got %v", w, g)
				}
				ws[i].Close()
				ws[i].Close()
				if g := got(ws[i]); !slices.Equal(g, []string{"closed"}) {
					t.Errorf("%+v: after Close got %v", w, g)
				}
			}
			if n := f.s.Stats().Watchers; n != 0 {
				t.Errorf("%d watchers are left", n)
			}
		})
	}
}

func TestWatchHistory(t *testing.T) {
	f := newFixture(t)
	for _, r := range []v2request.Request{
		put("/a", "1"), // 4
		with(put("/a", ""), all(refresh, exist, ttl(9))), // 5
		put("/d/_h/x", "1"), // 6
		with(put("/d", ""), all(method("DELETE"), recursive)), // 7
		put("/a", "2"), // 8
	} {
		f.do(r)
	}
	for _, reloaded := range []bool{false, true} {
		if reloaded {
			f.reload()
		}
		for _, c := range []struct {
			path      string
			recursive bool
			since     uint64
			want      []string
		}{
			{"/1/a", false, 1, []string{"set /a@4", "set /a@8"}},
			{"/1/a", false, 5, []string{"set /a@8"}},
			{"/1", true, 6, []string{"set /d/_h/x@6", "delete /d@7", "set /a@8"}},
			{"/1/dog", false, 4, []string{"delete /d@7"}}, // compared as a string, as in etcd
			{"/1/x", false, 4, nil},
		} {
			w := f.watch(c.path, c.recursive, false, c.since)
			if g := got(w); !slices.Equal(g, c.want[:min(1, len(c.want))]) {
				t.Errorf("%s from %d: got %v, want the first of %v", c.path, c.since, g, c.want)
			}
			w.Close()
			w = f.watch(c.path, c.recursive, true, c.since)
			if g := got(w); !slices.Equal(g, c.want) {
				t.Errorf("%s from %d, all: got %v, want %v", c.path, c.since, g, c.want)
			}
			w.Close()
		}
	}
	// With stream, past events are followed by new ones.
	w := f.watch("/1/a", false, true, 4)
	f.do(put("/a", "3"))
	if g, want := got(w), []string{"set /a@4", "set /a@8", "set /a@9"}; !slices.Equal(g, want) {
		t.Errorf("past and present: got %v, want %v", g, want)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	f := newFixture(t)
	for i := range historyEvents + 40 {
		f.do(put("/a", fmt.Sprint(i)))
	}
	for range 2 {
		_, err := f.s.Watch("/1/a", false, false, 4)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeIndexCleared || e.Cause != "the requested history has been cleared [44/4]" || e.Index != 1043 {
			t.Errorf("got %+v", err)
		}
		w := f.watch("/1/a", false, false, 44)
		if g := got(w); !slices.Equal(g, []string{"set /a@44"}) {
			t.Errorf("the oldest: got %v", g)
		}
		before := state(f.s)
		f.reload()
		differ(t, "the records", state(f.s), before)
	}
	if n := strings.Count(records(t, f.eng), `"\x10h`); n != historyEvents {
		t.Errorf("%d events are kept, want %d", n, historyEvents)
	}
}

// Events that take too much room shorten the history, but the newest event is always in it.
func TestHistoryBytes(t *testing.T) {
	var h history
	whole := strings.Repeat("x", historyBytes+1)
	for i, c := range []struct {
		size     int
		from, to uint64
	}{{historyBytes / 2, 1, 1}, {historyBytes / 2, 1, 1}, {1, 1, 2}, {historyBytes + 1, 2, 4}, {1, 4, 5}} {
		from, to := h.add(&Event{Node: &Node{Key: whole[:c.size]}}, uint64(i+1))
		if from != c.from || to != c.to || h.start != c.to || len(h.events) != i+2-int(c.to) {
			t.Errorf("step %d: [%d, %d) has to go, %d from %d on stay; want [%d, %d)", i, from, to, len(h.events), h.start, c.from, c.to)
		}
	}
}

func TestSlowWatcherIsDropped(t *testing.T) {
	f := newFixture(t)
	w := f.watch("/1/a", false, true, 0)
	for i := range watcherRoom + 1 {
		f.do(put("/a", fmt.Sprint(i)))
	}
	g := got(w)
	if len(g) != watcherRoom+1 || g[len(g)-1] != "closed" || g[99] != "set /a@103" {
		t.Errorf("got %d, the last %q", len(g), g[len(g)-1])
	}
	if n := f.s.Stats().Watchers; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestCloseEndsWatchers(t *testing.T) {
	f := newFixture(t)
	w := f.watch("/1/a", false, true, 0)
	f.s.Close()
	late := f.watch("/1/a", false, true, 0)
	for _, w := range []*Watcher{w, late} {
		if g := got(w); !slices.Equal(g, []string{"closed"}) {
			t.Errorf("got %v", g)
		}
	}
}
