package v2store

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"quorate/internal/metrics"
)

// watcherRoom is how many events may wait for a slow reader before its watcher is
// dropped.
const watcherRoom = 100

// Watcher gets events of one path. Its methods may be called from any goroutine.
type Watcher struct {
	hub               *hub
	path              string
	recursive, stream bool
	since, start      uint64
	events            chan *Event // guarded by hub.mu for sending and closing
	live, closed      bool        // guarded by hub.mu
}

// Events has room for 100 events that nobody has fetched. It is closed when that
// does not suffice, when the store ends, and by Close. A watcher without stream
// gets one event.
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
	watchers map[string]map[*Watcher]bool // by path; those that live ones are sent to
	count    int
	ended    bool
}

func (h *hub) number() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint64(h.count)
}

// Watch returns a watcher of a path, or with recursive of everything below it,
// too. since is the first index that it is interested in, 0 the next. Of the past
// it gets what the history holds: without stream the first event, with stream all.
// It is an *Error of CodeIndexCleared if that no longer goes back to since.
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

// leave takes w out of the set; its channel stays open.
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

// end closes all watchers, also those to come.
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

// notify tells the watchers of an event. gone are the paths below its key that
// went with it: their watchers are told as well.
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

// hiddenBelow tells whether a key lies in a hidden node below a watched path.
func hiddenBelow(watched, key string) bool {
	return len(watched) <= len(key) && strings.Contains(path.Clean("/"+key[len(watched):]), "/_")
}
