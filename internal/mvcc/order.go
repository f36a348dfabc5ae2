package mvcc

import (
	"cmp"
	"slices"
)

// placed is an element to be sorted by key, and where it is.
type placed struct {
	key uint64
	at  int32
}

// fewPlaced is the number of elements up to which comparing them is faster.
const fewPlaced = 128

// byKey sorts list, whose keys are at most most. It may return another slice. A piece of a
// list can have hundreds of thousands of elements, and revisions are dense, so this sorts
// digit by digit.
func byKey(list []placed, most uint64) []placed {
	if len(list) <= fewPlaced {
		slices.SortFunc(list, func(a, b placed) int { return cmp.Compare(a.key, b.key) })
		return list
	}
	const digit = 11 // bits
	other := make([]placed, len(list))
	for shift := 0; shift < 64 && most>>shift != 0; shift += digit {
		var at [1<<digit + 1]int32 // where the next element with a digit goes
		for _, p := range list {
			at[p.key>>shift&(1<<digit-1)+1]++
		}
		for i := range 1 << digit {
			at[i+1] += at[i]
		}
		for _, p := range list {
			d := p.key >> shift & (1<<digit - 1)
			other[at[d]] = p
			at[d]++
		}
		list, other = other, list
	}
	return list
}
