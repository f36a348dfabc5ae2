package proposal

import "slices"

// Held holds requests that raft could not accept when they arrived, in order of arrival.
// They are bounded by the limits of the table and are dropped when they expire. It is not
// safe for concurrent use: only the core uses it.
type Held struct{ waiting []*Pending }

// Empty reports whether no request is held.
func (h *Held) Empty() bool { return len(h.waiting) == 0 }

// With returns the requests to propose now: the held ones, followed by fresh. It leaves out
// those that are no longer in the table, as a write must not be proposed after its client
// was told that it timed out. Held is empty afterwards, until Keep.
func (h *Held) With(fresh []*Pending, t *Table) []*Pending {
	if len(h.waiting) == 0 {
		return fresh
	}
	all := make([]*Pending, 0, len(h.waiting)+len(fresh))
	for _, p := range h.waiting {
		if t.Lookup(p.ID) == p {
			all = append(all, p)
		}
	}
	for _, p := range fresh {
		if !p.Repeat || !slices.Contains(all, p) { // else it is held already
			all = append(all, p)
		}
	}
	h.waiting = nil
	return all
}

// Keep holds the requests of all that raft did not accept, after those already held. The
// first taken of all were accepted.
func (h *Held) Keep(all []*Pending, taken int) {
	h.waiting = append(h.waiting, all[taken:]...)
}
