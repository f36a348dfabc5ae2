package sim

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is the model of a single key: a register with get, put and compare-and-swap.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var keys []string
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(input).key
			if byKey[k] == nil {
				keys = append(keys, k)
			}
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, k := range keys {
			parts = append(parts, byKey[k])
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		value, i, o := state.(string), in.(input), out.(output)
		switch i.op {
		case "get":
			return o.unknown || o.value == value, value
		case "put":
			return true, i.value
		}
		matches := value == i.old
		next := value
		if matches {
			next = i.value
		}
		return o.unknown || o.swapped == matches, next
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// checkHistory appends a final read of each key to the history and checks that it is
// linearizable.
func (w *World) checkHistory() {
	if w.err != nil {
		return
	}
	var history []porcupine.Operation
	keys := map[string]bool{}
	for _, c := range w.clients {
		history = append(history, c.history...)
		for _, op := range c.history {
			keys[op.Input.(input).key] = true
		}
	}
	for k := range keys { // the order does not matter: each key is checked by itself
		value, err := w.members()[0].value(k)
		if err != nil {
			w.fail("final read of %s: %w", k, err)
			return
		}
		history = append(history, porcupine.Operation{ClientId: len(w.clients), Input: input{key: k, op: "get"},
			Output: output{value: value}, Call: int64(w.now), Return: int64(w.now) + 1})
	}
	for _, part := range register.Partition(history) {
		key := part[0].Input.(input).key
		switch linearizable(part) {
		case porcupine.Illegal:
			w.fail("the history of %s is not linearizable: an acknowledged operation was lost or seen out of order", key)
		case porcupine.Unknown:
			w.fail("the history of %s could not be checked within a minute", key)
		}
	}
}

// linearizable searches for an order of the operations on a key that explains them. Many whose
// outcome is unknown would make the search take forever: each may take effect at any time, or
// never. Every value is written by one operation, so what has seen it bounds that. Operations
// that nothing has seen are first left out: if the others have an order, these can be at its
// end. Otherwise they may still have made a compare fail, so the search is repeated with them.
func linearizable(history []porcupine.Operation) porcupine.CheckResult {
	seen := firstSeen(history)
	var all, known []porcupine.Operation
	for _, op := range history {
		if out := op.Output.(output); out.unknown {
			at, ok := seen[op.Input.(input).value]
			if ok && at >= op.Call {
				op.Return = at
			}
			if all = append(all, op); !ok {
				continue
			}
		} else {
			all = append(all, op)
		}
		known = append(known, op)
	}
	if res := porcupine.CheckOperationsTimeout(register, known, time.Minute); res == porcupine.Ok || len(known) == len(all) {
		return res
	}
	return porcupine.CheckOperationsTimeout(register, all, time.Minute)
}

// firstSeen returns, for each value that was seen, a time at which it had been written: at the
// end of the first get that returned it, or of the first compare that it made succeed.
func firstSeen(history []porcupine.Operation) map[string]int64 {
	seen := map[string]int64{}
	note := func(value string, at int64) bool {
		old, ok := seen[value]
		if ok && old <= at {
			return false
		}
		seen[value] = at
		return true
	}
	for more := true; more; {
		more = false
		for _, op := range history {
			in, out := op.Input.(input), op.Output.(output)
			switch at, ok := seen[in.value]; {
			case in.op == "get" && !out.unknown:
				more = note(out.value, op.Return) || more
			case in.op == "cas" && out.swapped && !out.unknown:
				more = note(in.old, op.Return) || more
			case in.op == "cas" && out.unknown && ok: // its value was seen, so its compare has succeeded
				more = note(in.old, at) || more
			}
		}
	}
	return seen
}
