package mvcc

import (
	"cmp"
	"math/rand"
	"slices"
	"testing"

	"quorate/internal/ids"
)

// The order of elements is that of their revisions, for few and many, in transactions of
// one and of many keys.
func TestInOrder(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for _, n := range []int{1, 2, 3, 50, fewPlaced, fewPlaced + 1, 1000, 20_000} {
		for _, subs := range []int{1, 2, 300} {
			for _, far := range []ids.Revision{1, 1 << 20, 1 << 45, 1 << 62 / ids.Revision(n)} {
				elems := make([]elem, n)
				for i, j := range rnd.Perm(n) {
					elems[i] = elem{mod: 5 + ids.Revision(j/subs)*far, sub: uint32(j % subs)}
				}
				sorted := slices.Clone(elems)
				slices.SortFunc(sorted, func(a, b elem) int {
					return cmp.Or(cmp.Compare(a.mod, b.mod), cmp.Compare(a.sub, b.sub))
				})
				order := inOrder(elems)
				if order == nil && !slices.Equal(elems, sorted) {
					t.Fatalf("n=%d subs=%d far=%d: taken for sorted", n, subs, far)
				}
				for i, at := range order {
					if elems[at] != sorted[i] {
						t.Fatalf("n=%d subs=%d far=%d: element %d is %v, want %v", n, subs, far, i, elems[at], sorted[i])
					}
				}
			}
		}
	}
}

func BenchmarkInOrder(b *testing.B) {
	const n = 250_000
	elems := make([]elem, n)
	for i := range elems {
		elems[i].mod = ids.Revision(uint64(i) * 777_767_777 % n)
	}
	for range b.N {
		inOrder(elems)
	}
}
