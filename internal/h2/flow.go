package h2

// sendWindows is the flow control of what is sent: the windows that the client has granted,
// and the streams that wait for one. Guarded by conn.mu.
type sendWindows struct {
	conn    int64     // of the connection
	initial int64     // of each stream, which adds its own credit
	lacking int       // streams waiting for a window of their own
	waiting []*Stream // for the connection's window or its buffer, in order
}

// of returns the send window of a stream.
func (w *sendWindows) of(s *Stream) int64 { return w.initial + s.flow.credit }

// wake wakes the sender of a stream if it waits.
func (w *sendWindows) wake(s *Stream) {
	switch s.flow.waits {
	case waitsNot:
		return
	case waitsForWindow:
		w.lacking--
	}
	s.flow.waits = waitsNot
	s.flow.ready <- struct{}{} // never blocks: a stream is woken once per wait
}

// wakeNext wakes the stream that has waited longest for the connection. That stream wakes
// the next one if it leaves room.
func (w *sendWindows) wakeNext() {
	for len(w.waiting) > 0 {
		s := w.waiting[0]
		w.waiting[0] = nil
		if w.waiting = w.waiting[1:]; len(w.waiting) == 0 {
			w.waiting = nil
		}
		if s.flow.waits == waitsForConn && !s.flow.done {
			w.wake(s)
			return
		}
	}
}

// changed wakes a stream's sender if it was waiting for window and now has some.
func (w *sendWindows) changed(s *Stream) {
	if s.flow.waits == waitsForWindow && w.of(s) > 0 {
		w.wake(s)
	}
}

// take uses n bytes of the windows of the connection and of a stream.
func (w *sendWindows) take(s *Stream, n int) {
	s.flow.credit -= int64(n)
	w.conn -= int64(n)
}

// recvWindows is the flow control of what is received: what handlers have not taken, and
// the windows that streams have beyond the normal ones. Guarded by conn.mu.
type recvWindows struct {
	w        *flusher  // gets the updates
	held     int       // bytes received that no handler has taken yet
	extended int       // window granted beyond the normal windows of streams
	wanting  []*Stream // streams waiting for such an extension, in order
}

// extend grants a stream the window for a message longer than its window, or queues it
// for that.
func (r *recvWindows) extend(s *Stream, missing int) {
	if n := missing - int(s.flow.recvWindow); n > 0 && !s.flow.done {
		s.flow.wants = n
		r.wanting = append(r.wanting, s)
		r.extendNext()
	}
}

func (r *recvWindows) extendNext() {
	for len(r.wanting) > 0 && (r.extended == 0 || r.extended+r.wanting[0].flow.wants <= extendedBytes) {
		s := r.wanting[0]
		r.wanting = r.wanting[1:]
		if s.flow.done {
			continue
		}
		n := s.flow.wants
		s.flow.wants = 0
		s.flow.extended += n
		s.flow.recvWindow += int64(n)
		r.extended += n
		r.w.control(func(b []byte) []byte { return appendWindowUpdate(b, s.id, uint32(n)) })
	}
}

// withdraw reclaims the extension that a stream still holds.
func (r *recvWindows) withdraw(s *Stream) {
	r.extended -= s.flow.extended
	s.flow.extended, s.flow.wants = 0, 0
	r.extendNext()
}

// taken gives back the window that a message of n bytes occupied.
func (r *recvWindows) taken(s *Stream, n int) {
	k := min(n, s.flow.unread)
	s.flow.unread -= k
	r.held -= k
	if beyond := min(n, s.flow.extended); beyond > 0 {
		// The extension was granted for this message and ends with it.
		s.flow.extended -= beyond
		r.extended -= beyond
		n -= beyond
		r.extendNext()
	}
	r.giveBack(s, n)
}

// giveBack returns n bytes of window to a stream; updates are sent for a quarter of it at a time.
func (r *recvWindows) giveBack(s *Stream, n int) {
	s.flow.consumed += n
	if s.flow.consumed >= streamWindow/4 && !s.flow.clientEnded {
		s.flow.recvWindow += int64(s.flow.consumed)
		k := uint32(s.flow.consumed)
		s.flow.consumed = 0
		r.w.control(func(b []byte) []byte { return appendWindowUpdate(b, s.id, k) })
	}
}

// received counts n bytes that a stream has received.
func (r *recvWindows) received(s *Stream, n int) {
	s.flow.unread += n
	r.held += n
}

// dropUnread forgets what a stream has received: its handler owns it, or nothing will take it.
func (r *recvWindows) dropUnread(s *Stream) {
	r.held -= s.flow.unread
	s.flow.unread = 0
}
