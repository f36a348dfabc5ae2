package lease

import (
	"slices"
	"strings"
	"time"
)

// queue is a binary heap of leases by time, then by id, so that leases with equal
// times come out in the same order on all members. Each lease knows its position.
type queue struct {
	items []*lease
	key   func(*lease) time.Time
	pos   func(*lease) *int
}

func (q *queue) less(a, b *lease) bool {
	if c := q.key(a).Compare(q.key(b)); c != 0 {
		return c < 0
	}
	return a.ID < b.ID
}

func (q *queue) place(i int, x *lease) {
	q.items[i] = x
	*q.pos(x) = i
}

func (q *queue) add(x *lease) {
	q.items = append(q.items, x)
	*q.pos(x) = len(q.items) - 1
	q.up(len(q.items) - 1)
}

// remove removes x; x need not be queued.
func (q *queue) remove(x *lease) {
	i := *q.pos(x)
	if i < 0 {
		return
	}
	*q.pos(x) = -1
	last := len(q.items) - 1
	moved := q.items[last]
	q.items[last] = nil
	q.items = q.items[:last]
	if i != last {
		q.place(i, moved)
		q.fix(moved)
	}
}

// fix restores the heap order after the key of x has changed.
func (q *queue) fix(x *lease) {
	if i := *q.pos(x); !q.down(i) {
		q.up(i)
	}
}

func (q *queue) up(i int) {
	x := q.items[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !q.less(x, q.items[parent]) {
			break
		}
		q.place(i, q.items[parent])
		i = parent
	}
	q.place(i, x)
}

func (q *queue) down(i int) (moved bool) {
	x := q.items[i]
	for {
		child := 2*i + 1
		if child >= len(q.items) {
			break
		}
		if r := child + 1; r < len(q.items) && q.less(q.items[r], q.items[child]) {
			child = r
		}
		if !q.less(q.items[child], x) {
			break
		}
		q.place(i, q.items[child])
		i, moved = child, true
	}
	q.place(i, x)
	return moved
}

// keySet is a set of keys. Most leases have one key or a few, for which a slice is
// smaller and faster than a map.
type keySet struct {
	few  []string
	many map[string]struct{} // used once few would exceed maxFew
}

const maxFew = 8

func (s *keySet) add(key []byte) {
	if s.many != nil {
		if _, ok := s.many[string(key)]; !ok {
			s.many[string(key)] = struct{}{}
		}
		return
	}
	for _, k := range s.few {
		if k == string(key) {
			return
		}
	}
	if len(s.few) < maxFew {
		s.few = append(s.few, string(key))
		return
	}
	s.many = make(map[string]struct{}, 2*maxFew)
	for _, k := range s.few {
		s.many[k] = struct{}{}
	}
	s.many[string(key)] = struct{}{}
	s.few = nil
}

func (s *keySet) remove(key []byte) {
	if s.many != nil {
		delete(s.many, string(key))
		return
	}
	for i, k := range s.few {
		if k == string(key) {
			s.few = slices.Delete(s.few, i, i+1)
			return
		}
	}
}

// sorted returns the keys in byte order.
func (s *keySet) sorted() [][]byte {
	keys := make([]string, 0, len(s.few)+len(s.many))
	keys = append(keys, s.few...)
	for k := range s.many {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	out := make([][]byte, len(keys))
	for i, k := range keys {
		out[i] = []byte(k)
	}
	return out
}
