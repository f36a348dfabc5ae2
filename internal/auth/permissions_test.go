package auth

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
)

func grant(kind authpb.Permission_Type, key, end string) *authpb.Permission {
	return &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}
}

func TestPermissionsAddUp(t *testing.T) {
	const r, w, rw = authpb.Permission_READ, authpb.Permission_WRITE, authpb.Permission_READWRITE
	p := merge([]*authpb.Role{
		{KeyPermission: []*authpb.Permission{grant(r, "a", "c"), grant(rw, "f", "")}},
		{KeyPermission: []*authpb.Permission{grant(r, "c", "d"), grant(r, "d", ""), grant(w, "x", "\x00"), grant(7, "q", ""), grant(r, "", "z"), grant(r, "p", "o")}},
	})
	for _, c := range []struct {
		key, end    string
		read, write bool
	}{
		{"a", "", true, false},
		{"a", "d", true, false},      // adjacent ranges are joined
		{"a", "d\x00", true, false},  // and include the key after the first one
		{"a", "d\x01", false, false}, // but nothing after that
		{"0", "b", false, false},
		{"b", "b", true, false}, // ends where it begins: its first key counts
		{"b", "a", true, false},
		{"e", "a", false, false},
		{"f", "", true, true},
		{"f", "g", false, false},
		{"f", "\x00", false, false},
		{"x", "", false, true},
		{"x", "\x00", false, true},
		{"xyz", "z", false, true},
		{"w", "\x00", false, false},
		{"\x00", "\x00", false, false},
		{"q", "", false, false}, // an unknown type
		{"o", "", false, false}, // an empty range
		{"p", "", false, false},
	} {
		if got := p.read.cover([]byte(c.key), []byte(c.end)); got != c.read {
			t.Errorf("read [%q, %q): got %v, want %v", c.key, c.end, got, c.read)
		}
		if got := p.write.cover([]byte(c.key), []byte(c.end)); got != c.write {
			t.Errorf("write [%q, %q): got %v, want %v", c.key, c.end, got, c.write)
		}
	}
}

// TestCoverAgainstEveryKey compares the answer for random permissions with checks of each
// key of a small key space.
func TestCoverAgainstEveryKey(t *testing.T) {
	const letters = 9
	rnd := rand.New(rand.NewPCG(1, 2))
	letter := func(i int) string { return string(rune('a' + i)) }
	for range 2000 {
		var held [letters]bool // letter i and the keys that start with it
		openFrom := letters
		role := &authpb.Role{}
		for range rnd.IntN(5) {
			from, to := rnd.IntN(letters), rnd.IntN(letters)
			if rnd.IntN(8) == 0 {
				role.KeyPermission = append(role.KeyPermission, grant(authpb.Permission_READ, letter(from), "\x00"))
				openFrom = min(openFrom, from)
				continue
			}
			role.KeyPermission = append(role.KeyPermission, grant(authpb.Permission_READ, letter(from), letter(to)))
			for i := from; i < to; i++ {
				held[i] = true
			}
		}
		s := merge([]*authpb.Role{role}).read
		sane := merge([]*authpb.Role{{KeyPermission: slices.DeleteFunc(role.KeyPermission, func(p *authpb.Permission) bool { return !validRange(p.Key, p.RangeEnd) })}}).read
		for from := range letters {
			for to := range letters { // etcd's tree and the spans agree about ranges that both support
				key, end := []byte(letter(from)), []byte(letter(to))
				if to == 0 {
					end = []byte{0}
				} else if to <= from {
					continue
				}
				if got, want := sane.cover(key, end), sane.tree().Contains(intervalOf(key, end)); got != want {
					t.Fatalf("%v: [%q, %q): got %v, in the tree %v", role.KeyPermission, key, end, got, want)
				}
			}
			for to := from + 1; to < letters; to++ {
				want := true
				for i := from; i < to; i++ {
					want = want && (held[i] || i >= openFrom)
				}
				if got := s.cover([]byte(letter(from)), []byte(letter(to))); got != want {
					t.Fatalf("%v: [%s, %s): got %v, want %v", role.KeyPermission, letter(from), letter(to), got, want)
				}
			}
			if got, want := s.cover([]byte(letter(from)), nil), held[from] || from >= openFrom; got != want {
				t.Fatalf("%v: %s: got %v, want %v", role.KeyPermission, letter(from), got, want)
			}
		}
	}
}

// TestBackwards holds what etcd 3.7.3 answers about ranges that end before they begin.
func TestBackwards(t *testing.T) {
	const rw = authpb.Permission_READWRITE
	for _, c := range []struct {
		granted  []*authpb.Permission
		key, end string
		want     bool
	}{
		{[]*authpb.Permission{grant(rw, "b", ""), grant(rw, "c", "z")}, "d", "a", false},
		{[]*authpb.Permission{grant(rw, "c", "z")}, "d", "a", true},
		{[]*authpb.Permission{grant(rw, "c", "z"), grant(rw, "b", "")}, "d", "a", true},
	} {
		if got := merge([]*authpb.Role{{KeyPermission: c.granted}}).write.cover([]byte(c.key), []byte(c.end)); got != c.want {
			t.Errorf("%v gives [%q, %q): %v", c.granted, c.key, c.end, got)
		}
	}
}

func TestValidRange(t *testing.T) {
	for _, c := range []struct {
		key, end string
		want     bool
	}{{"a", "", true}, {"a", "b", true}, {"a", "a", false}, {"b", "a", false}, {"b", "\x00", true}, {"\x00", "\x00", true}, {"", "b", false}, {"", "", false}} {
		if got := validRange([]byte(c.key), []byte(c.end)); got != c.want {
			t.Errorf("[%q, %q): got %v, want %v", c.key, c.end, got, c.want)
		}
	}
}

func FuzzCover(f *testing.F) {
	f.Add([]byte("a"), []byte("c"), []byte("b"), []byte(""))
	f.Add([]byte("a"), []byte{0}, []byte{0}, []byte{0})
	f.Fuzz(func(t *testing.T, key, end, ask, askEnd []byte) {
		s := merge([]*authpb.Role{{KeyPermission: []*authpb.Permission{{Key: key, RangeEnd: end}}}}).read
		if !validRange(ask, askEnd) || !s.cover(ask, askEnd) {
			return
		}
		if bytes.Compare(ask, key) < 0 {
			t.Fatalf("[%q, %q) gives [%q, %q)", key, end, ask, askEnd)
		}
	})
}
