package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"
)

// What is known about operations with an unknown outcome makes the search shorter and must
// not change what it finds: it is compared with a search that knows nothing.
func TestLinearizable(t *testing.T) {
	found := map[porcupine.CheckResult]int{}
	for seed := uint64(0); seed < 20_000; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		history := someHistory(rng)
		got := linearizable(history)
		want := porcupine.Illegal
		if porcupine.CheckOperations(register, history) {
			want = porcupine.Ok
		}
		if got != want {
			t.Fatalf("history %d: %v, want %v: %+v", seed, got, want, history)
		}
		found[want]++
	}
	if found[porcupine.Ok] < 1000 || found[porcupine.Illegal] < 1000 {
		t.Errorf("%v histories by result, too few of one", found)
	}
}

// someHistory returns what a few clients may have seen of a register that is right most of the
// time.
func someHistory(rng *rand.Rand) (history []porcupine.Operation) {
	value, values := "", []string{""}
	for i := range 3 + rng.IntN(7) {
		in := input{key: "k", op: pick(rng, "get", "put", "cas", "cas"), value: fmt.Sprint("v", i), old: values[rng.IntN(len(values))]}
		call := int64(10*i - rng.IntN(40))
		op := porcupine.Operation{ClientId: i, Input: in, Call: call, Return: int64(10*i + 1 + rng.IntN(40))}
		out := output{unknown: in.op != "get" && rng.IntN(2) == 0}
		lost := out.unknown && rng.IntN(2) == 0
		switch {
		case in.op == "get":
			if out.value = value; rng.IntN(3) == 0 {
				out.value = values[rng.IntN(len(values))]
			}
		case lost:
		case in.op == "put" || in.old == value:
			value, out.swapped = in.value, in.op == "cas" && !out.unknown
		}
		if in.op != "get" {
			values = append(values, in.value)
		}
		if out.unknown {
			op.Return = math.MaxInt64
		}
		op.Output = out
		history = append(history, op)
	}
	return history
}

// A search through every set of operations that may have taken effect would not end.
func TestManyUnknownOutcomes(t *testing.T) {
	var history []porcupine.Operation
	at := int64(0)
	add := func(in input, out output) {
		at += 10
		op := porcupine.Operation{ClientId: len(history), Input: in, Output: out, Call: at, Return: at + 5}
		if out.unknown {
			op.Return = math.MaxInt64
		}
		history = append(history, op)
	}
	for i := range 200 {
		value := fmt.Sprint("v", i)
		add(input{key: "k", op: "put", value: value}, output{unknown: true})
		if i%2 == 0 {
			add(input{key: "k", op: "get"}, output{value: value})
			add(input{key: "k", op: "cas", value: value + "x", old: "v"}, output{})
		}
	}
	if res := linearizable(history); res != porcupine.Ok {
		t.Errorf("%v, want an order", res)
	}
}
