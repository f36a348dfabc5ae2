package sim

import (
	"quorate/internal/apply"
	"quorate/internal/digest"
	"quorate/internal/ids"
)

// summed is a digest of one release up to an index, which began at another one.
type summed struct {
	release      uint64
	began, index ids.Index
}

// noteDigest compares the integrity digests of the entries that a member has just applied
// with those of other members at the same indexes: what each entry adds to them, and, as
// they are part of snapshots here, whole digests that began together.
func (n *node) noteDigest(ents []apply.Entry) {
	if len(ents) == 0 {
		return
	}
	from := ids.Index(ents[0].GetIndex())
	report := n.machine.Digest().Report(from - 1)
	for i, p := range report.Points[1:] {
		key := summed{report.Release, report.Began, p.Index}
		if first, ok := n.w.digests[key]; !ok {
			n.w.digests[key] = p
		} else if p != first {
			n.w.fail("member %d has written something else than another member at index %d or, if that is before index %d, in the entries up to it: digest %+v, want %+v",
				n.index, p.Index, from, p, first)
			return
		}
		before := report.Points[i]
		if before.Index+1 != p.Index {
			continue
		}
		adds := digest.Point{Index: p.Index, State: p.State - before.State, V2: p.V2 - before.V2}
		if first, ok := n.w.written[p.Index]; !ok {
			n.w.written[p.Index] = adds
		} else if adds != first {
			n.w.fail("member %d, of release %v, has written something else for entry %d than another member: digest %+v, want %+v", n.index, n.release, p.Index, adds, first)
			return
		}
	}
}
