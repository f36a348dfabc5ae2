package proposal

import "slices"

// Held are requests that came while there was nobody to take them, in order of
// arrival. They are bounded by the limits of the table and leave with their expiry.
// The core alone uses it.
type Held struct{ waiting []*Pending }

// Empty reports whether nothing waits.
func (h *Held) Empty() bool { return len(h.waiting) == 0 }

// With takes what is to be proposed now: what waits, without those whose time is
// over, as a write must not come to life after its client was told so, and then
// what is new. Nothing waits any more until Keep.
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
		if !p.Repeat || !slices.Contains(all, p) { // else it waits already
			all = append(all, p)
		}
	}
	h.waiting = nil
	return all
}

// Keep lets wait, behind what waits already, those of all that were not taken; the
// first taken ones were.
func (h *Held) Keep(all []*Pending, taken int) {
	h.waiting = append(h.waiting, all[taken:]...)
}
