package sim

import "quorate/internal/apply"

// noteDigest compares the integrity digests of the entries that a member has just applied
// with those of other members at the same indexes. Digests are part of snapshots here, so
// whole digests are equal on all members, not only their increments.
func (n *node) noteDigest(ents []apply.Entry) {
	if len(ents) == 0 {
		return
	}
	from := ents[0].GetIndex()
	report := n.machine.Digest().Report(from - 1)
	for _, p := range report.Points[1:] {
		first, ok := n.w.digests[p.Index]
		if !ok {
			n.w.digests[p.Index] = p
			continue
		}
		if p != first {
			n.w.fail("member %d has written something else than another member at index %d or, if that is before index %d, in the entries up to it: digest %+v, want %+v",
				n.index, p.Index, from, p, first)
			return
		}
	}
}
