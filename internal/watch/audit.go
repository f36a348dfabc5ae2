package watch

import "fmt"

// Audit checks the bounds of the queues, and that what the hub counts is what it holds. It
// must not be called while a response is being taken or events are published.
func (h *Hub) Audit() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	chunks := map[*chunk]bool{}
	watching, spare := int64(0), int64(0)
	for _, s := range h.streams {
		alone, err := s.audit(chunks)
		if err != nil {
			return err
		}
		watching += s.watching
		spare += int64(alone)
	}
	held := int64(0)
	for c := range chunks {
		held += int64(c.size)
	}
	switch counted := h.pending.Load(); {
	case counted != held:
		return fmt.Errorf("watch: %d bytes are counted as queued, %d are", counted, held)
	case held > h.o.PendingBytes+spare:
		return fmt.Errorf("watch: %d bytes are queued, the limit is %d", held, h.o.PendingBytes)
	case watching != h.watching || watching > h.o.WatcherBytes:
		return fmt.Errorf("watch: the streams have %d bytes of watchers, %d are counted, the limit is %d", watching, h.watching, h.o.WatcherBytes)
	}
	return nil
}

// audit checks one stream, and adds its chunks. alone is the size of a response that is the
// only one in its queue, which accepts it whatever the limits are.
func (s *Stream) audit(chunks map[*chunk]bool) (alone int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events, answers, bytes, newest := 0, 0, 0, 0
	for _, it := range s.queue[s.head:] {
		if it.answer {
			answers++
			continue
		}
		events++
		bytes += it.size
		if it.size > 0 {
			newest = it.size
		}
		if it.chunk != nil {
			chunks[it.chunk] = true
		}
	}
	// A change of permissions cancels watchers whether or not there is room, and a progress
	// request that waits is answered with the next revision.
	most := s.hub.o.ControlResponses + len(s.all) + int(s.nextID) + 1
	switch o := s.hub.o; {
	case events != s.events || answers != s.answers || bytes != s.bytes:
		return 0, fmt.Errorf("watch: a queue holds %d responses of %d bytes and %d answers; %d, %d and %d are counted", events, bytes, answers, s.events, s.bytes, s.answers)
	case events > max(1, o.QueueResponses) || answers > most:
		return 0, fmt.Errorf("watch: a queue holds %d responses and %d answers, the limits are %d and %d", events, answers, o.QueueResponses, most)
	case events > 1 && bytes-newest >= o.QueueBytes:
		return 0, fmt.Errorf("watch: a queue holds %d bytes before its newest response, the limit is %d", bytes-newest, o.QueueBytes)
	case s.watching > o.StreamWatcherBytes:
		return 0, fmt.Errorf("watch: a stream has %d bytes of watchers, the limit is %d", s.watching, o.StreamWatcherBytes)
	case events == 1:
		return bytes, nil
	}
	return 0, nil
}
