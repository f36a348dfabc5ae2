package watch

// Recheck ends every watcher for which refuse gives a reason, with an answer that
// tells the reason. Events that are queued for it still go out before that: they
// are older than the decision. refuse gets the user that the watcher was created
// for and the range in the form of a request, and is called under the lock of
// the hub, so it must not block.
//
// Called on the apply goroutine between a decision and the Publish of what came
// after it, it guarantees that no later event reaches a watcher that lost its
// permission. A watcher that is being created at that moment may be missed: who
// creates one looks again whether the decision still holds once it exists.
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
			s.removeLocked(w) // another one takes place i
			s.push(item{answer: true, resp: &Response{WatchID: w.id, Revision: h.currentLocked(), Canceled: true, CancelReason: reason}})
		}
	}
}
