package sim

import "quorate/internal/apply"

// noteDigest compares what a member has added up of the entries that it has just applied
// with what others had at the same indexes. Digests travel with snapshots here, so they
// are the same on all members, and not only their growth.
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
			n.w.fail("member %d has written something else than another one at index %d or, if that is before index %d, in the entries up to it: digest %+v, want %+v",
				n.index, p.Index, from, p, first)
			return
		}
	}
}
