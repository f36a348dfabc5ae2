package auth

import (
	"cmp"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// span is the keys from begin, inclusive, to end, exclusive. An open span has no
// end.
type span struct {
	begin, end string
	open       bool
}

// spans are sorted, and no two of them overlap or touch.
type spans []span

// keys are those that a user may touch.
type keys struct {
	// spans answer nearly all questions.
	spans spans
	// granted are the ranges as they were granted, in the order in which etcd puts them
	// into its tree of intervals. The tree answers where a range ends before it begins:
	// what follows for that is decided by its shape.
	granted []adt.Interval
	odd     bool // such a range is among those granted
	tree    func() adt.IntervalTree
}

// permissions is what the roles of a user add up to.
type permissions struct{ read, write keys }

// openEnd is how requests and permissions write "and everything after it".
const openEnd = "\x00"

// spanOf returns the keys of a permission or a request. ok is false for a range
// that holds no key; etcd grants none.
func spanOf(key, end []byte) (s span, ok bool) {
	s = span{begin: string(key), end: string(end)}
	switch s.end {
	case "":
		s.end = s.begin + "\x00" // a single key
	case openEnd:
		s.end, s.open = "", true
	}
	return s, s.begin != "" && (s.open || s.begin < s.end)
}

// intervalOf is the same for the tree, which cannot say that a range holds no key.
func intervalOf(key, end []byte) adt.Interval {
	switch {
	case len(end) == 0:
		return adt.NewBytesAffinePoint(key)
	case string(end) == openEnd:
		end = nil
	}
	return adt.NewBytesAffineInterval(key, end)
}

func (k *keys) add(p *authpb.Permission) {
	s, ok := spanOf(p.Key, p.RangeEnd)
	if ok {
		k.spans = append(k.spans, s)
	}
	k.odd = k.odd || !ok
	k.granted = append(k.granted, intervalOf(p.Key, p.RangeEnd))
}

func (k *keys) done() {
	k.spans = join(k.spans)
	granted := k.granted
	k.tree = sync.OnceValue(func() adt.IntervalTree {
		t := adt.NewIntervalTree()
		for _, x := range granted {
			t.Insert(x, nil)
		}
		return t
	})
}

// cover reports whether every key of a request is among k.
func (k *keys) cover(key, end []byte) bool {
	want, ok := spanOf(key, end)
	switch {
	case ok && !k.odd:
		return k.spans.cover(want)
	case len(end) == 0:
		return k.tree().Intersects(intervalOf(key, nil))
	}
	return k.tree().Contains(intervalOf(key, end))
}

// merge adds up the permissions of roles.
func merge(roles []*authpb.Role) *permissions {
	p := &permissions{}
	for _, r := range roles {
		for _, perm := range r.KeyPermission {
			switch perm.PermType {
			case authpb.Permission_READ:
				p.read.add(perm)
			case authpb.Permission_WRITE:
				p.write.add(perm)
			case authpb.Permission_READWRITE:
				p.read.add(perm)
				p.write.add(perm)
			}
		}
	}
	p.read.done()
	p.write.done()
	return p
}

// join sorts s and joins what overlaps or touches.
func join(s spans) spans {
	slices.SortFunc(s, func(a, b span) int { return cmp.Compare(a.begin, b.begin) })
	out := s[:0]
	for _, x := range s {
		if n := len(out); n > 0 && (out[n-1].open || x.begin <= out[n-1].end) {
			last := &out[n-1]
			if !last.open && (x.open || x.end > last.end) {
				last.end, last.open = x.end, x.open
			}
			continue
		}
		out = append(out, x)
	}
	return slices.Clip(out)
}

// cover reports whether all of want lies in s.
func (s spans) cover(want span) bool {
	i, found := slices.BinarySearchFunc(s, want.begin, func(x span, key string) int { return cmp.Compare(x.begin, key) })
	if !found {
		i--
	}
	if i < 0 {
		return false
	}
	have := s[i]
	if have.open {
		return true
	}
	return want.begin < have.end && !want.open && want.end <= have.end
}

// validRange reports whether a permission may be granted on the range.
func validRange(key, end []byte) bool {
	_, ok := spanOf(key, end)
	return ok
}
