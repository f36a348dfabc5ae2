package history

import (
	"slices"
	"testing"
	"time"
)

// The checks must find each kind of wrong history, and accept a correct one.
func TestChecksFindViolations(t *testing.T) {
	ms := time.Millisecond
	base := []Op{
		{client: 0, kind: put, key: "k", value: "a", call: 0, ret: 2 * ms, known: true, rev: 2},
		{client: 1, kind: put, key: "k", value: "b", call: 3 * ms, ret: 6 * ms, known: true, rev: 3},
		{client: 2, kind: put, key: "k", value: "c", call: 4 * ms, ret: 5 * ms},
		{client: 3, kind: cas, key: "k", old: "b", value: "d", call: 7 * ms, ret: 8 * ms, known: true, wrote: true, rev: 4},
		{client: 3, kind: get, key: "k", call: 9 * ms, ret: 10 * ms, known: true, read: "d", rev: 4},
		{client: 3, kind: del, key: "k", call: 11 * ms, ret: 12 * ms, known: true, wrote: true, rev: 5},
		{client: 3, kind: get, key: "k", call: 13 * ms, ret: 14 * ms, known: true, rev: 5},
	}
	seen := []Event{{2, "k", "a"}, {3, "k", "b"}, {4, "k", "d"}, {5, "k", ""}}
	with := func(i int, change func(*Op)) []Op {
		ops := slices.Clone(base)
		change(&ops[i])
		return ops
	}
	for _, c := range []struct {
		name       string
		ops        []Op
		events     []Event
		order, rev bool // whether each check accepts
	}{
		{"right", base, seen, true, true},
		{"stale read", with(4, func(o *Op) { o.read, o.rev = "b", 3 }), seen, false, false},
		{"read of a value never written", with(4, func(o *Op) { o.read = "c" }), seen, false, false},
		{"lost write", with(6, func(o *Op) { o.read = "a" }), seen, false, false},
		{"acknowledged write not in the events", base, seen[:2], true, false},
		{"both of two exclusive writes", append(slices.Clone(base), Op{client: 4, kind: cas, key: "k", old: "b", value: "e",
			call: 7 * ms, ret: 8 * ms, known: true, wrote: true, rev: 4}), seen, false, false},
		{"delete of a key that is there found nothing", with(5, func(o *Op) { o.wrote = false }), seen, false, true},
		{"write of an older revision than an earlier answer", with(3, func(o *Op) { o.rev = 2 }), seen, true, false},
	} {
		if err := Linearizable(c.ops, c.events); (err == nil) != c.order {
			t.Errorf("%s: Linearizable says %v", c.name, err)
		}
		if err := Revisions(c.ops, c.events); (err == nil) != c.rev {
			t.Errorf("%s: Revisions says %v", c.name, err)
		}
	}
}
