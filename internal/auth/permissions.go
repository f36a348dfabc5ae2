package auth

import (
	"cmp"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// span is the range of keys from begin, inclusive, to end, exclusive. An open span
// has no end.
type span struct {
	begin, end string
	open       bool
}

// spans are sorted, and no two of them overlap or touch.
type spans []span

// keys are the keys that a user may access.
type keys struct {
	// spans answer nearly all requests.
	spans spans
	// granted are the ranges as they were granted, in the order in which etcd inserts
	// them into its interval tree. Only the tree can answer for a range that ends before
	// it begins, because the answer depends on its shape.
	granted []adt.Interval
	odd     bool // granted contains such a range
	tree    func() adt.IntervalTree
}

// permissions is the union of the permissions of a user's roles.
type permissions struct{ read, write keys }

// openEnd is the range end that means "all keys from the first one on".
const openEnd = "\x00"

// spanOf returns the range of keys of a permission or a request. ok is false for an
// empty range; etcd grants none.
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

// intervalOf is spanOf for the tree, which has no form for an empty range.
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

// cover reports whether k contains every key of a request.
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

// merge returns the union of the roles' permissions.
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

// join sorts s and merges spans that overlap or touch.
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

// cover reports whether s contains all of want.
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
