package cluster

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

type kind int

const (
	get kind = iota
	put
	cas // writes value if the key holds old; reads the key otherwise
	del
)

func (k kind) String() string { return []string{"get", "put", "cas", "delete"}[k] }

// op is one call of a client. An absent key is the value "".
type op struct {
	client     int
	kind       kind
	key        string
	value, old string        // written, and compared with
	call, ret  time.Duration // since the start of the history
	known      bool          // there was an answer, which is:
	read       string        // value that a get, or a cas that did not write, has seen
	wrote      bool          // whether a cas wrote, or a delete found something
	rev        int64         // revision in the answer's header
}

func (o op) String() string {
	s := fmt.Sprintf("client %d [%v, %v] %s %s", o.client, o.call, o.ret, o.kind, o.key)
	if o.kind == cas {
		s += fmt.Sprintf(" %q ->", o.old)
	}
	if o.kind == put || o.kind == cas {
		s += fmt.Sprintf(" %q", o.value)
	}
	if !o.known {
		return s + ": no answer"
	}
	return s + fmt.Sprintf(": read %q, wrote %v, revision %d", o.read, o.wrote, o.rev)
}

// event is one change as a watcher has seen it.
type event struct {
	rev   int64
	key   string
	value string // "" for a deletion
}

// register is the sequential behaviour of one key. Its state is the value.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, in, _ any) (bool, any) {
		v, o := state.(string), in.(op)
		switch o.kind {
		case put:
			return true, o.value
		case del:
			return !o.known || o.wrote == (v != ""), ""
		case cas:
			match := v == o.old
			if o.known && (o.wrote != match || !match && o.read != v) {
				return false, v
			}
			if match {
				v = o.value
			}
			return true, v
		}
		return o.read == v, v
	},
	DescribeOperation: func(in, _ any) string { return in.(op).String() },
}

// checkTimeout bounds the search of one key; a history that it does not decide is no success.
const checkTimeout = 2 * time.Minute

// linearizable reports whether the operations on each key can be put in an order that explains
// all answers and that no two operations contradict of which one ended before the other began.
//
// Of the operations without answer, those that changed nothing would only slow the search down:
// an unanswered read, and a write whose value, which is unique, is in no event. The events are
// complete, which checkStream has shown, so a read of such a value would be found here.
func linearizable(ops []op, events []event) error {
	written := map[string]bool{}
	for _, e := range events {
		written[e.value] = true
	}
	keys := map[string][]porcupine.Operation{}
	for _, o := range ops {
		if !o.known && (o.kind == get || o.kind != del && !written[o.value]) {
			continue
		}
		p := porcupine.Operation{ClientId: o.client, Input: o, Call: int64(o.call), Return: int64(o.ret)}
		if !o.known {
			p.Return = math.MaxInt64
		}
		keys[o.key] = append(keys[o.key], p)
	}
	for key, history := range keys {
		switch porcupine.CheckOperationsTimeout(register, history, checkTimeout) {
		case porcupine.Illegal:
			return fmt.Errorf("the history of %s is not linearizable:\n%s", key, shortest(history))
		case porcupine.Unknown:
			return fmt.Errorf("%s: not decided within %v (%d operations)", key, checkTimeout, len(history))
		}
	}
	return nil
}

// shortest describes the shortest beginning of a history that is not linearizable.
func shortest(history []porcupine.Operation) string {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	n := 1
	for ; n < len(history); n++ {
		if porcupine.CheckOperationsTimeout(register, history[:n], 10*time.Second) == porcupine.Illegal {
			break
		}
	}
	var b strings.Builder
	for _, p := range history[max(0, n-30):n] {
		fmt.Fprintln(&b, " ", p.Input)
	}
	return b.String()
}

// revisions checks the answers against the events by their revisions: a write is the event at its
// revision, a read sees the state at its revision, and revisions never contradict the clock.
// It holds for whole histories, where the search above may be spoiled by what it does not know.
func revisions(ops []op, events []event) error {
	type change struct {
		rev   int64
		value string
	}
	changes := map[string][]change{}
	for _, e := range events {
		changes[e.key] = append(changes[e.key], change{e.rev, e.value})
	}
	at := func(key string, rev int64) change { // newest change up to rev
		c := changes[key]
		i, found := slices.BinarySearchFunc(c, rev, func(c change, r int64) int { return cmp.Compare(c.rev, r) })
		if found {
			return c[i]
		}
		if i == 0 {
			return change{}
		}
		return c[i-1]
	}
	for _, o := range ops {
		if !o.known {
			continue
		}
		c := at(o.key, o.rev)
		switch writes := o.kind == put || o.wrote; {
		case writes && (c.rev != o.rev || o.kind != del && c.value != o.value || o.kind == del && c.value != ""):
			return fmt.Errorf("acknowledged, but not in the events: %v; the last change is %+v", o, c)
		case !writes && c.value != o.read:
			return fmt.Errorf("wrong read: %v; the last change is %+v", o, c)
		}
	}
	byCall, byReturn := slices.Clone(ops), slices.Clone(ops)
	slices.SortFunc(byCall, func(a, b op) int { return cmp.Compare(a.call, b.call) })
	slices.SortFunc(byReturn, func(a, b op) int { return cmp.Compare(a.ret, b.ret) })
	var seen op // answered before the present call, of the highest revision
	i := 0
	for _, o := range byCall {
		for ; i < len(byReturn) && byReturn[i].ret < o.call; i++ {
			if r := byReturn[i]; r.known && r.rev > seen.rev {
				seen = r
			}
		}
		if writes := o.kind == put || o.wrote; o.known && (o.rev < seen.rev || writes && o.rev == seen.rev) {
			return fmt.Errorf("goes back in time: %v\nwas answered before the call of %v", seen, o)
		}
	}
	return nil
}

// The checks must find each kind of wrong history, and accept a right one.
func TestChecksFindViolations(t *testing.T) {
	ms := time.Millisecond
	base := []op{
		{client: 0, kind: put, key: "k", value: "a", call: 0, ret: 2 * ms, known: true, rev: 2},
		{client: 1, kind: put, key: "k", value: "b", call: 3 * ms, ret: 6 * ms, known: true, rev: 3},
		{client: 2, kind: put, key: "k", value: "c", call: 4 * ms, ret: 5 * ms},
		{client: 3, kind: cas, key: "k", old: "b", value: "d", call: 7 * ms, ret: 8 * ms, known: true, wrote: true, rev: 4},
		{client: 3, kind: get, key: "k", call: 9 * ms, ret: 10 * ms, known: true, read: "d", rev: 4},
		{client: 3, kind: del, key: "k", call: 11 * ms, ret: 12 * ms, known: true, wrote: true, rev: 5},
		{client: 3, kind: get, key: "k", call: 13 * ms, ret: 14 * ms, known: true, rev: 5},
	}
	seen := []event{{2, "k", "a"}, {3, "k", "b"}, {4, "k", "d"}, {5, "k", ""}}
	with := func(i int, change func(*op)) []op {
		ops := slices.Clone(base)
		change(&ops[i])
		return ops
	}
	for _, c := range []struct {
		name       string
		ops        []op
		events     []event
		order, rev bool // whether each check accepts
	}{
		{"right", base, seen, true, true},
		{"stale read", with(4, func(o *op) { o.read, o.rev = "b", 3 }), seen, false, false},
		{"read of a value never written", with(4, func(o *op) { o.read = "c" }), seen, false, false},
		{"lost write", with(6, func(o *op) { o.read = "a" }), seen, false, false},
		{"acknowledged write not in the events", base, seen[:2], true, false},
		{"both of two exclusive writes", append(slices.Clone(base), op{client: 4, kind: cas, key: "k", old: "b", value: "e",
			call: 7 * ms, ret: 8 * ms, known: true, wrote: true, rev: 4}), seen, false, false},
		{"delete of a key that is there found nothing", with(5, func(o *op) { o.wrote = false }), seen, false, true},
		{"write of an older revision than an earlier answer", with(3, func(o *op) { o.rev = 2 }), seen, true, false},
	} {
		if err := linearizable(c.ops, c.events); (err == nil) != c.order {
			t.Errorf("%s: linearizable says %v", c.name, err)
		}
		if err := revisions(c.ops, c.events); (err == nil) != c.rev {
			t.Errorf("%s: revisions says %v", c.name, err)
		}
	}
}
