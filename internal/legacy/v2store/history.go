package v2store

import (
	"fmt"
	"strings"
)

// historyEvents and historyBytes bound the history: etcd's number of events, and a total
// size of their keys and values that only extraordinary events exceed.
const (
	historyEvents = 1000
	historyBytes  = 128 << 20
)

// history holds the newest events, one for each index from start on; those of the
// membership are nil, because no client can see them.
type history struct {
	start  uint64 // index of the oldest, 0 while it is empty
	events []*Event
	bytes  int // total of bulk over the events
}

// add appends the event of an index and returns the indexes [from, to) of the events that
// it dropped.
func (h *history) add(e *Event, index uint64) (from, to uint64) {
	if len(h.events) == 0 {
		h.start = index
	}
	h.events = append(h.events, e)
	h.bytes += bulk(e)
	from = h.start
	for len(h.events) > historyEvents || h.bytes > historyBytes && len(h.events) > 1 {
		h.bytes -= bulk(h.events[0])
		h.events[0] = nil
		h.events = h.events[1:]
		h.start++
	}
	return from, h.start
}

// bulk is an event's share of historyBytes. It is the same on all members, whether they
// applied the event or loaded it.
func bulk(e *Event) int {
	if e == nil {
		return 0
	}
	n := len(e.Node.Key)
	for _, x := range []*Node{e.Node, e.PrevNode} {
		if x != nil && x.Value != nil {
			n += len(*x.Value)
		}
	}
	return n
}

// since returns up to max events, from an index on, for a watcher of a path. It fails if
// these events have been dropped. current is the store's index.
func (h *history) since(p string, recursive bool, from uint64, max int, current uint64) ([]*Event, *Error) {
	start := h.start
	if len(h.events) == 0 {
		start = current + 1
	}
	if from < start {
		return nil, NewError(CodeIndexCleared, fmt.Sprintf("the requested history has been cleared [%d/%d]", start, from), current)
	}
	if from-h.start >= uint64(len(h.events)) {
		return nil, nil
	}
	var out []*Event
	for _, e := range h.events[from-h.start:] {
		if len(out) < max && e != nil && !e.Refresh && remembered(e, p, recursive) {
			out = append(out, e)
		}
	}
	return out, nil
}

// remembered reports whether a watcher gets a past event. As in etcd this is wider than for
// live events: hidden nodes are included, and a removed directory is compared as a string.
func remembered(e *Event, p string, recursive bool) bool {
	if e.Node.Key == p {
		return true
	}
	if recursive && strings.HasPrefix(e.Node.Key, strings.TrimSuffix(p, "/")+"/") {
		return true
	}
	gone := e.Action == Delete || e.Action == Expire
	return gone && e.PrevNode != nil && e.PrevNode.Dir && strings.HasPrefix(p, e.PrevNode.Key)
}
