package v2store

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"quorate/internal/metrics"
)

// watcherRoom is the number of events that may wait for a slow reader before its watcher is
// closed.
const watcherRoom = 100

// Watcher receives the events of one path. It is safe for concurrent use.
type Watcher struct {
	hub               *hub
	path              string
	recursive, stream bool
	since, start      uint64
	events            chan *Event // guarded by hub.mu for sending and closing
	live, closed      bool        // guarded by hub.mu
}

// Events has room for 100 unread events. It is closed when that overflows, when the store
// is closed, and by Close. A watcher without stream gets one event.
func (w *Watcher) Events() <-chan *Event { return w.events }

// StartIndex is the store's index when the watch began.
func (w *Watcher) StartIndex() uint64 { return w.start }

// Close ends the watch. It may be called more than once.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.drop(w)
}

// hub is the set of watchers. Lock order: Store.mu before mu.
type hub struct {
	mu       sync.Mutex
	watchers map[string]map[*Watcher]bool // live watchers by path
	count    int
	ended    bool
}

func (h *hub) number() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint64(h.count)
}

// Watch returns a watcher of a path and, with recursive, of everything below it. since is
// the first index of interest, 0 the next one. From the past it gets what the history
// holds: without stream the first event, with stream all. If the history no longer goes
// back to since, Watch returns an *Error of CodeIndexCleared.
func (s *Store) Watch(p string, recursive, stream bool, since uint64) (*Watcher, error) {
	metrics.DebuggingStoreWatchRequestsTotal.Inc()
	p = clean(p)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if since == 0 {
		since = s.index + 1
	}
	most := 1
	if stream {
		most = historyEvents
	}
	past, e := s.history.since(p, recursive, since, most, s.index)
	if e != nil {
		return nil, e
	}
	w := &Watcher{hub: &s.hub, path: p, recursive: recursive, stream: stream, since: since, start: s.index}
	w.events = make(chan *Event, len(past)+1)
	if stream {
		w.events = make(chan *Event, len(past)+watcherRoom)
	}
	for _, e := range past {
		x := *e
		x.EtcdIndex = s.index
		w.events <- &x
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.ended {
		s.hub.drop(w)
	} else if stream || len(past) == 0 {
		s.hub.add(w)
	}
	return w, nil
}

func (h *hub) add(w *Watcher) {
	if h.watchers[w.path] == nil {
		h.watchers[w.path] = map[*Watcher]bool{}
	}
	h.watchers[w.path][w] = true
	w.live = true
	h.count++
	metrics.DebuggingStoreWatchers.Inc()
}

// leave removes w from the set; its channel stays open.
func (h *hub) leave(w *Watcher) {
	if !w.live {
		return
	}
	w.live = false
	delete(h.watchers[w.path], w)
	if len(h.watchers[w.path]) == 0 {
		delete(h.watchers, w.path)
	}
	h.count--
	metrics.DebuggingStoreWatchers.Dec()
}

func (h *hub) drop(w *Watcher) {
	h.leave(w)
	if !w.closed {
		w.closed = true
		close(w.events)
	}
}

// end closes all watchers, future ones too.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for _, set := range slices.Collect(maps.Values(h.watchers)) {
		for w := range maps.Clone(set) {
			h.drop(w)
		}
	}
}

// notify sends an event to its watchers. gone are the paths below its key that were removed
// with it: their watchers get the event as well.
func (h *hub) notify(e *Event, gone []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range gone {
		h.tell(e, p, true)
	}
	h.tell(e, "/", false)
	for i, c := range e.Node.Key {
		if c == '/' && i > 0 {
			h.tell(e, e.Node.Key[:i], false)
		}
	}
	if e.Node.Key != "/" {
		h.tell(e, e.Node.Key, false)
	}
}

// tell sends e to the watchers of one path.
func (h *hub) tell(e *Event, p string, gone bool) {
	key := e.Node.Key
	if hiddenBelow(p, key) {
		return
	}
	for w := range h.watchers[p] {
		if !w.recursive && p != key && !gone || e.Index() < w.since {
			continue
		}
		select {
		case w.events <- e:
			if !w.stream {
				h.leave(w)
			}
		default:
			h.drop(w)
		}
	}
}

// hiddenBelow reports whether a key is in a hidden node below a watched path.
func hiddenBelow(watched, key string) bool {
	return len(watched) <= len(key) && strings.Contains(path.Clean("/"+key[len(watched):]), "/_")
}
