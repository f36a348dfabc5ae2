package proposal

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestHeld(t *testing.T) {
	table, now := NewTable(100, 1<<20), time.Unix(100, 0)
	admit := func(id uint64, timeout time.Duration) *Pending {
		p := &Pending{ID: id}
		if err := table.Admit(p, now, timeout); err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b, c, d := admit(1, time.Second), admit(2, time.Minute), admit(3, time.Minute), admit(4, time.Minute)
	c.Repeat = true
	var h Held
	same := func(what string, got []*Pending, want ...*Pending) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	all := h.With([]*Pending{a, b, c}, table)
	same("what is new", all, a, b, c)
	h.Keep(all, 0)
	all = h.With([]*Pending{c, d}, table)
	same("held and new, a repeated one once", all, a, b, c, d)
	h.Keep(all, 0)

	table.Expire(now.Add(2*time.Second), func(time.Time) error { return errors.New("timed out") })
	all = h.With(nil, table)
	same("without what has expired", all, b, c, d)
	h.Keep(all, 2)
	h.Keep([]*Pending{b}, 0)
	all = h.With(nil, table)
	same("what was not taken, then what was kept back", all, d, b)
	h.Keep(all, 2)
	if !h.Empty() || len(h.With(nil, table)) > 0 {
		t.Error("what was taken is held")
	}
}
