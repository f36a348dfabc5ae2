package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
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

// Op is one client call. An absent key is the value "".
type Op struct {
	client     int
	kind       kind
	key        string
	value, old string        // written, and compared with
	call, ret  time.Duration // since the start of the history
	known      bool          // there was an answer, which is:
	read       string        // value read by a get, or by a cas that did not write
	wrote      bool          // whether a cas wrote, or a delete deleted a key
	rev        int64         // revision in the answer's header
}

func (o Op) String() string {
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

// Event is one change as a watcher saw it.
type Event struct {
	Rev   int64
	Key   string
	Value string // "" for a deletion
}

// register is the sequential behaviour of one key. Its state is the value.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, in, _ any) (bool, any) {
		v, o := state.(string), in.(Op)
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
	DescribeOperation: func(in, _ any) string { return in.(Op).String() },
}

// checkTimeout bounds the search of one key; a history that is undecided by then counts as a failure.
const checkTimeout = 2 * time.Minute

// Linearizable reports whether the operations on each key have an order that explains all answers and in which
// no operation follows one that began after it had returned.
//
// Of the operations without an answer, those that changed nothing would only slow the search down: an unanswered
// read, and a write whose value, which is unique, is in no event. The watcher has verified that the events are
// complete, so a read of such a value would be found here.
func Linearizable(ops []Op, events []Event) error {
	written := map[string]bool{}
	for _, e := range events {
		written[e.Value] = true
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

// shortest describes the shortest prefix of a history that is not linearizable.
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

// Revisions checks the answers against the events by their revisions: a write is the event at its revision, a
// read sees the state at its revision, and revisions never contradict real time. It works on complete histories,
// where operations without an answer may make the search above too slow.
func Revisions(ops []Op, events []Event) error {
	type change struct {
		rev   int64
		value string
	}
	changes := map[string][]change{}
	for _, e := range events {
		changes[e.Key] = append(changes[e.Key], change{e.Rev, e.Value})
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
	slices.SortFunc(byCall, func(a, b Op) int { return cmp.Compare(a.call, b.call) })
	slices.SortFunc(byReturn, func(a, b Op) int { return cmp.Compare(a.ret, b.ret) })
	var seen Op // answered before this call, of the highest revision
	i := 0
	for _, o := range byCall {
		for ; i < len(byReturn) && byReturn[i].ret < o.call; i++ {
			if r := byReturn[i]; r.known && r.rev > seen.rev {
				seen = r
			}
		}
		if writes := o.kind == put || o.wrote; o.known && (o.rev < seen.rev || writes && o.rev == seen.rev) {
			return fmt.Errorf("contradicts real time: %v\nwas answered before the call of %v", seen, o)
		}
	}
	return nil
}
