package auth

import (
	"cmp"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
)

// span is the keys from begin, inclusive, to end, exclusive. An open span has no
// end.
type span struct {
	begin, end string
	open       bool
}

// spans are sorted, and no two of them overlap or touch.
type spans []span

// permissions is what the roles of a user add up to.
type permissions struct{ read, write spans }

// openEnd is how requests and permissions write "and everything after it".
const openEnd = "\x00"

// spanOf returns the keys of a permission or a request. ok is false for a range
// that holds no key; etcd stores none.
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

// merge adds up the permissions of roles.
func merge(roles []*authpb.Role) *permissions {
	p := &permissions{}
	for _, r := range roles {
		for _, perm := range r.KeyPermission {
			s, ok := spanOf(perm.Key, perm.RangeEnd)
			if !ok {
				continue
			}
			switch perm.PermType {
			case authpb.Permission_READ:
				p.read = append(p.read, s)
			case authpb.Permission_WRITE:
				p.write = append(p.write, s)
			case authpb.Permission_READWRITE:
				p.read, p.write = append(p.read, s), append(p.write, s)
			}
		}
	}
	p.read, p.write = join(p.read), join(p.write)
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

// cover reports whether every key of a request lies in s. A range that ends
// before it begins is judged by its first key, as etcd does.
func (s spans) cover(key, end []byte) bool {
	want, _ := spanOf(key, end)
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
