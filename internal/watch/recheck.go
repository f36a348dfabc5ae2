package watch

// Recheck cancels every watcher for which refuse returns a reason, with a response that
// contains the reason. Events already queued are still sent before it: they are older than
// the decision. refuse gets the user that the watcher was created for, and the range in the
// form of a request. It is called with the hub locked, so it must not block.
//
// If it is called on the apply goroutine between the decision and the Publish of anything
// later, no later event reaches a watcher that has lost its permission. A watcher that is
// being created at the time may be missed: its creator must check again, once the watcher
// exists, that the decision still holds.
func (h *Hub) Recheck(refuse func(owner string, key, end []byte) (reason string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.streams {
		for i := 0; i < len(s.all); {
			w := s.all[i]
			if w.state == gone {
				i++
				continue
			}
			end := []byte(w.spec.end)
			if w.spec.open {
				end = []byte{0}
			}
			reason := refuse(w.owner, []byte(w.spec.key), end)
			if reason == "" {
				i++
				continue
			}
			s.removeLocked(w) // another watcher is at i now
			s.push(item{answer: true, resp: &Response{WatchID: w.id, Revision: h.currentLocked(), Canceled: true, CancelReason: reason}})
		}
	}
}
