package digest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
)

// member is a store to which entries are applied.
type member struct {
	t       *testing.T
	eng     engine.Engine
	d       *Digest
	applied ids.Index
}

func newMember(t *testing.T, applied ids.Index) *member {
	m := &member{t: t, eng: mem.New(), applied: applied}
	m.open("r1")
	return m
}

func (m *member) open(release string) {
	m.t.Helper()
	d, err := Open(m.eng, m.applied, release)
	if err != nil {
		m.t.Fatal(err)
	}
	m.d = d
}

// apply applies entries up to an index, in batches of n; write determines what each writes.
func (m *member) apply(to ids.Index, n int, write func(b engine.Batch, index ids.Index)) {
	m.t.Helper()
	for m.applied < to {
		raw := m.eng.NewBatch()
		b := m.d.Begin(raw)
		for range n {
			if m.applied == to {
				break
			}
			m.applied++
			m.d.Entry(m.applied, 5)
			if write != nil {
				write(b, m.applied)
			} else {
				plain(b, m.applied)
			}
			m.d.Applied()
		}
		m.d.Store(raw)
		if err := raw.Commit(); err != nil {
			m.t.Fatal(err)
		}
		m.d.Publish()
	}
}

func plain(b engine.Batch, index ids.Index) {
	b.Set(engine.Key.K(binary.BigEndian.AppendUint64(nil, uint64(index))), fmt.Appendf(nil, "value %d", index))
}

// faultyAt writes something else at one index.
func faultyAt(at ids.Index) func(engine.Batch, ids.Index) {
	return func(b engine.Batch, index ids.Index) {
		if index == at {
			b.Set(engine.Key.K(binary.BigEndian.AppendUint64(nil, uint64(index))), []byte("another value"))
			return
		}
		plain(b, index)
	}
}

func (m *member) compare(o *member) Comparison { return Compare(m.d.Report(0), o.d.Report(0)) }

func TestEqualHoweverBatched(t *testing.T) {
	a, b := newMember(t, 0), newMember(t, 0)
	a.apply(5000, 1, nil)
	b.apply(4900, 333, nil)
	want := Comparison{Known: true, State: Stretch{Equal: 4900}, V2: Stretch{Equal: 4900}}
	if got := a.compare(b); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestOrderWithinAnEntryDoesNotCount(t *testing.T) {
	pairs := func(keys ...string) func(engine.Batch, ids.Index) {
		return func(b engine.Batch, _ ids.Index) {
			for _, k := range keys {
				b.Set(engine.AuthUsers.K([]byte(k)), []byte(k))
			}
		}
	}
	a, b := newMember(t, 0), newMember(t, 0)
	a.apply(3, 1, pairs("x", "y"))
	b.apply(3, 1, pairs("y", "x"))
	if got := a.compare(b); got.State.Found() {
		t.Errorf("%+v", got)
	}
}

// Each kind of write counts, except what members may hold differently.
func TestWhatCounts(t *testing.T) {
	for _, x := range []struct {
		what      string
		a, b      func(engine.Batch)
		state, v2 bool
	}{
		{"a value", func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, []byte("a")) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, []byte("b")) }, true, false},
		{"a key", func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, nil) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 2}, nil) }, true, false},
		{"where a key ends", func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, []byte{2}) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1, 2}, nil) }, true, false},
		{"a write", func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, nil) }, func(engine.Batch) {}, true, false},
		{"delete or set", func(b engine.Batch) { b.Set([]byte{byte(engine.Key), 1}, nil) }, func(b engine.Batch) { b.Delete([]byte{byte(engine.Key), 1}) }, true, false},
		{"a range", func(b engine.Batch) { b.DeleteRange([]byte{byte(engine.Key), 1}, []byte{9}) }, func(b engine.Batch) { b.DeleteRange([]byte{byte(engine.Key), 1}, []byte{8}) }, true, false},
		{"a lease", func(b engine.Batch) { b.Set([]byte{byte(engine.Lease), 1}, nil) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Lease), 2}, nil) }, true, false},
		{"the v2 API", func(b engine.Batch) { b.Set([]byte{byte(engine.V2), 1}, []byte("a")) }, func(b engine.Batch) { b.Set([]byte{byte(engine.V2), 1}, []byte("b")) }, false, true},
		{"TTL of a lease", func(b engine.Batch) { b.Set([]byte{byte(engine.Lease), 1}, []byte("2")) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Lease), 1}, []byte("3")) }, false, false},
		{"name of a member", func(b engine.Batch) { b.Set([]byte{byte(engine.Members), 1}, []byte("2")) }, func(b engine.Batch) { b.Set([]byte{byte(engine.Members), 1}, []byte("3")) }, false, false},
		{"unsummed", func(b engine.Batch) { Unsummed(b).Set([]byte{byte(engine.Key), 1}, nil) }, func(engine.Batch) {}, false, false},
	} {
		a, b := newMember(t, 0), newMember(t, 0)
		a.apply(3, 1, nil)
		b.apply(3, 1, nil)
		a.apply(4, 1, func(b engine.Batch, _ ids.Index) { x.a(b) })
		b.apply(4, 1, func(b engine.Batch, _ ids.Index) { x.b(b) })
		if got := a.compare(b); got.State.Found() != x.state || got.V2.Found() != x.v2 {
			t.Errorf("%s: %+v", x.what, got)
		}
	}
}

// A founder's own first entries, of term 1, do not count: they come from its own flags.
func TestFirstTerm(t *testing.T) {
	sum := func(term ids.Term, value string) Point {
		m := newMember(t, 0)
		raw := m.eng.NewBatch()
		b := m.d.Begin(raw)
		m.d.Entry(1, term)
		b.Set(engine.Meta.K([]byte("x")), []byte(value))
		m.d.Applied()
		m.d.Store(raw)
		m.d.Publish()
		r := m.d.Report(0)
		return r.Head()
	}
	if sum(1, "a") != sum(1, "b") || sum(2, "a") == sum(2, "b") || sum(2, "a") == sum(3, "a") {
		t.Error("the first term does count, or a later one does not")
	}
}

// The index at which a member began to differ is reported exactly near the head, and
// coarsely further back.
func TestWhereTheyPart(t *testing.T) {
	for _, x := range []struct {
		at   ids.Index
		head ids.Index
		want Stretch
	}{
		{10_000, 10_000, Stretch{9999, 10_000}},
		{10_000, 10_500, Stretch{9999, 10_000}},
		{10_000, 30_000, Stretch{9984, 10_048}},
		{10_000, 80_000, Stretch{8192, 12_288}},
		{1, 100, Stretch{0, 1}},
	} {
		a, b := newMember(t, 0), newMember(t, 0)
		a.apply(x.head, 100, nil)
		b.apply(x.head+7, 70, faultyAt(x.at))
		if got := a.compare(b); got.State != x.want {
			t.Errorf("at %d, seen at %d: %+v, want %+v", x.at, x.head, got.State, x.want)
		}
	}
}

// The digest continues after a restart, and so does what was found.
func TestRestart(t *testing.T) {
	a, b := newMember(t, 0), newMember(t, 0)
	a.apply(40_000, 100, nil)
	b.apply(40_000, 64, faultyAt(9000))
	b.open("r1")
	if got, want := a.compare(b).State, (Stretch{8192, 12_288}); got != want {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
	if n := len(b.d.Report(0).Points); n != 40_000/coarseStep+2 {
		t.Errorf("%d points after a restart", n)
	}
}

// A member that starts over reports nothing about earlier entries, and is compared from then on.
func TestBeginsAnew(t *testing.T) {
	for what, begin := range map[string]func(m *member){
		"another release": func(m *member) { m.open("r2"); m.apply(m.applied+1, 1, nil); m.open("r1") },
		"went on without": func(m *member) { m.applied += 10; m.open("r1") },
	} {
		a, b := newMember(t, 0), newMember(t, 0)
		a.apply(5000, 100, nil)
		b.apply(4000, 100, faultyAt(3500))
		begin(b)
		began := b.applied
		b.apply(began+1, 1, nil)
		b.open("r1")
		b.apply(5000, 1, nil)
		if got := a.compare(b); got.State.Found() || !got.Known {
			t.Errorf("%s: %+v", what, got)
		}
		if r := b.d.Report(0); r.Began != began {
			t.Errorf("%s: began at %d, want %d", what, r.Began, began)
		}
		a.apply(5100, 10, nil)
		b.apply(5100, 10, faultyAt(5050))
		if got, want := a.compare(b).State, (Stretch{5049, 5050}); got != want {
			t.Errorf("%s: later %+v, want %+v", what, got, want)
		}
	}
	a, b := newMember(t, 0), newMember(t, 0)
	a.apply(10, 1, nil)
	b.open("r2")
	b.apply(10, 1, faultyAt(5))
	if got := a.compare(b); got.Known || got.State.Found() {
		t.Errorf("releases were compared: %+v", got)
	}
}

// The store keeps a bounded number of points.
func TestStoredPointsAreBounded(t *testing.T) {
	m := newMember(t, 0)
	for index := ids.Index(1); index <= coarseKept+10; index++ { // as if the others existed
		raw := m.eng.NewBatch()
		m.d.Begin(raw)
		m.d.Entry(index*coarseStep, 5)
		m.d.Applied()
		m.d.Store(raw)
		if err := raw.Commit(); err != nil {
			t.Fatal(err)
		}
		m.d.Publish()
	}
	m.applied = (coarseKept + 10) * coarseStep
	m.apply(m.applied+5, 1, nil)
	lower, upper := engine.Digest.Bounds()
	it, err := m.eng.NewIter(lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if n != coarseKept+1 {
		t.Errorf("%d records, want %d", n, coarseKept+1)
	}
	r := m.d.Report(0)
	if len(r.Points) > MaxPoints {
		t.Errorf("%d points", len(r.Points))
	}
	if b := r.Encode(); len(b) > MaxReport {
		t.Errorf("a report of %d bytes", len(b))
	}
}

// A report of what is new is short, and contains a point that the other member already has.
func TestReportFrom(t *testing.T) {
	m := newMember(t, 0)
	m.apply(9000, 50, nil)
	r := m.d.Report(8990)
	var got []ids.Index
	for _, p := range r.Points {
		got = append(got, p.Index)
	}
	if want := []ids.Index{0, 8192, 8960, 8990, 8991, 8992, 8993, 8994, 8995, 8996, 8997, 8998, 8999, 9000}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestJudge(t *testing.T) {
	cluster := func(faults ...ids.Index) (reports []Report) {
		for i, at := range faults {
			m := newMember(t, 0)
			m.apply(100, 7, faultyAt(at))
			r := m.d.Report(0)
			r.Member = ids.Member(i + 1)
			reports = append(reports, r)
		}
		return reports
	}
	for _, x := range []struct {
		what     string
		faults   []ids.Index // 0: none; the first compares
		size     int
		want     []Suspect
		majority bool
	}{
		{"all agree", []ids.Index{0, 0, 0}, 3, nil, true},
		{"one of three", []ids.Index{0, 50, 0}, 3, []Suspect{{2, Stretch{49, 50}}}, true},
		{"the leader", []ids.Index{50, 0, 0}, 3, []Suspect{{1, Stretch{49, 50}}}, true},
		{"all three differ", []ids.Index{0, 50, 60}, 3, []Suspect{{2, Stretch{49, 50}}, {3, Stretch{59, 60}}}, false},
		{"one of three, and one is away", []ids.Index{0, 50}, 3, []Suspect{{2, Stretch{49, 50}}}, false},
		{"one of two", []ids.Index{0, 50}, 2, []Suspect{{2, Stretch{49, 50}}}, false},
		{"two halves", []ids.Index{0, 50, 0, 50}, 4, []Suspect{{2, Stretch{49, 50}}, {4, Stretch{49, 50}}}, false},
		{"two of five", []ids.Index{50, 0, 0, 50, 0}, 5, []Suspect{{1, Stretch{49, 50}}, {4, Stretch{49, 50}}}, true},
		{"nobody else", []ids.Index{0}, 3, nil, false},
	} {
		if got := Judge(cluster(x.faults...), x.size); !slices.Equal(got.Suspects, x.want) || got.Majority != x.majority || got.Undecided > 0 {
			t.Errorf("%s: %+v, want %v, %v", x.what, got, x.want, x.majority)
		}
	}
	// A member that cannot be compared is not a suspect.
	reports := cluster(0, 0)
	reports = append(reports, Report{Release: reports[0].Release + 1, Member: 3, Points: []Point{{}, {10, 1, 1}}})
	if got := Judge(reports, 3); len(got.Suspects) > 0 {
		t.Errorf("%+v", got)
	}
	// A member that has not reached the fault agrees with both sides, so it does not tell
	// who is right. Here that is the second member.
	behind := newMember(t, 0)
	behind.apply(40, 7, nil)
	reports = append(cluster(50, 0), behind.d.Report(0))
	reports[2].Member = 3
	if got := Judge(reports, 3); got.Majority || got.Undecided != 1 || !slices.Equal(got.Suspects, []Suspect{{2, Stretch{49, 50}}}) {
		t.Errorf("a member behind: %+v", got)
	}
	behind.apply(60, 7, nil)
	reports[2] = behind.d.Report(0)
	reports[2].Member = 3
	if got := Judge(reports, 3); !got.Majority || got.Undecided != 0 || !slices.Equal(got.Suspects, []Suspect{{1, Stretch{49, 50}}}) {
		t.Errorf("no member behind: %+v", got)
	}
}

func FuzzReport(f *testing.F) {
	for _, r := range []Report{
		{Points: []Point{{}}},
		{Release: 1, Member: 2, Began: 3, Points: []Point{{3, 0, 0}, {4, 5, 6}, {1 << 62, 7, 8}}},
	} {
		f.Add(r.Encode())
	}
	f.Add([]byte{reportFormat})
	f.Fuzz(func(t *testing.T, b []byte) {
		// With a valid checksum, what follows it is checked, too.
		sealed := append(slices.Clone(b), 0, 0, 0, 0)
		seal(sealed)
		for _, b := range [][]byte{b, sealed} {
			r, err := Decode(b)
			if err != nil {
				continue
			}
			if len(r.Points) == 0 || len(r.Points) > MaxPoints || !slices.IsSortedFunc(r.Points, func(a, b Point) int {
				if a.Index < b.Index {
					return -1
				}
				return 1
			}) {
				t.Fatalf("%v", r)
			}
			again, err := Decode(r.Encode())
			if err != nil || again.Member != r.Member || !slices.Equal(again.Points, r.Points) {
				t.Fatalf("%v, %v", again, err)
			}
			Compare(r, again)
		}
	})
}

// seal writes the checksum.
func seal(b []byte) {
	n := len(b) - 4
	binary.BigEndian.PutUint32(b[n:], checksum(b[:n]))
}

// BenchmarkEntry adds up a put of 256 bytes under a key of 32, in batches of some entries; the
// time is that of one entry, with its share of what a batch costs.
func BenchmarkEntry(b *testing.B) {
	for _, group := range []ids.Index{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", group), func(b *testing.B) {
			d, err := Open(mem.New(), 0, "r1")
			if err != nil {
				b.Fatal(err)
			}
			key, value := make([]byte, 18), make([]byte, 310)
			key[0] = byte(engine.Key)
			sink := d.Begin(nowhere{})
			b.ReportAllocs()
			for i := ids.Index(1); b.Loop(); i++ {
				binary.BigEndian.PutUint64(key[1:], uint64(i))
				d.Entry(i, 2)
				sink.Set(key, value)
				d.Applied()
				if i%group == 0 {
					d.Store(nowhere{})
					d.Publish()
					sink = d.Begin(nowhere{})
				}
			}
		})
	}
}

type nowhere struct{ engine.Batch }

func (nowhere) Set(key, value []byte)           {}
func (nowhere) Delete(key []byte)               {}
func (nowhere) DeleteRange(lower, upper []byte) {}
