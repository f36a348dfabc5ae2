package v2store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
)

// etcdDump was written by etcd 3.5.35 into a .snap file after some requests of clients,
// among them a TTL, a refresh, a directory with a TTL and bytes that are not UTF-8.
func etcdDump(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/etcd-3.5.35.json")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func restore(b engine.Batch, dump []byte) error {
	d, err := ParseDump(dump)
	if err != nil {
		return err
	}
	return d.Restore(b)
}

func restored(t testing.TB, dump []byte) (*Store, *mem.Engine) {
	t.Helper()
	eng := mem.New()
	b := eng.NewBatch()
	if err := restore(b, dump); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s, err := Load(eng, options())
	if err != nil {
		t.Fatal(err)
	}
	return s, eng
}

// normal returns JSON in a canonical form, without what a dump may leave out, and without
// everything below /0.
func normal(t testing.TB, data []byte) (root, history, stats string) {
	t.Helper()
	d, err := ParseDump(data)
	if err != nil {
		t.Fatal(err)
	}
	delete(d.Root.Children, "0")
	h := &d.WatcherHub.EventHistory
	for i, e := range h.Queue.Events {
		if e != nil && strings.HasPrefix(e.Node.Key, "/0") {
			h.Queue.Events[i] = &dumpEvent{Action: Set, Node: &Node{Key: "/0", Dir: true, ModifiedIndex: e.Node.ModifiedIndex, CreatedIndex: e.Node.ModifiedIndex}}
		}
	}
	d.Stats.GetsSuccess, d.Stats.GetsFail = 0, 0
	var out [3]string
	for i, v := range []any{d.Root, d.WatcherHub, d.Stats} {
		b, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		out[i] = string(b)
	}
	return out[0], out[1], out[2]
}

func TestDumpOfEtcd(t *testing.T) {
	data := etcdDump(t)
	s, eng := restored(t, data)
	if s.Index() != 17 || !s.HasTTL() || s.Stats().SetsSuccess != 13 || s.Stats().ExpireCount != 1 {
		t.Errorf("index %d, TTL %v, %+v", s.Index(), s.HasTTL(), s.Stats())
	}
	if got, want := text(s.Get("/1/fi", true, true)), `{"action":"get","node":{"key":"/fi","dir":true,"nodes":[{"key":"/fi/le","value":"xyz2","modifiedIndex":17,"createdIndex":17}],"modifiedIndex":11,"createdIndex":11}}`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	w, err := s.Watch("/1/t", false, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	if g := got(w); !slices.Equal(g, []string{"set /t@8"}) { // not the refresh at 9
		t.Errorf("got %v", g)
	}
	d := NewDump()
	if err := d.Fill(eng); err != nil {
		t.Fatal(err)
	}
	again, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	gotRoot, gotHistory, gotStats := normal(t, again)
	wantRoot, wantHistory, wantStats := normal(t, data)
	for i, c := range [][2]string{{gotRoot, wantRoot}, {gotHistory, wantHistory}, {gotStats, wantStats}} {
		if c[0] != c[1] {
			t.Errorf("part %d: got\n%s\nwant\n%s", i, c[0], c[1])
		}
	}
	if d.CurrentIndex != 17 || d.CurrentVersion != 2 || d.ClientKey() != "/1/dir" {
		t.Errorf("index %d, version %d, first key %q", d.CurrentIndex, d.CurrentVersion, d.ClientKey())
	}
}

// A dump and the store restored from it are the same store, down to the records.
func TestDumpAndBack(t *testing.T) {
	f := newFixture(t)
	for i := range historyEvents + 300 {
		f.do(with(put(fmt.Sprintf("/d%d/_k", i%7), fmt.Sprint(i)), ttl(int64(i%5))))
		if i%11 == 0 {
			f.do(with(put(fmt.Sprintf("/d%d", i%7), ""), all(method("DELETE"), recursive)))
		}
		if i%13 == 0 {
			f.do(expireAt(start.Add(2 * time.Second)))
		}
	}
	b := f.eng.NewBatch()
	f.s.Step(b, 2)
	f.commit(b)
	f.reload()
	d := NewDump()
	d.Root.At("0", "members", "1", "raftAttributes").Value = "{}"
	if err := d.Fill(f.eng); err != nil {
		t.Fatal(err)
	}
	data, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(d.WatcherHub.EventHistory.Queue.Events); n != historyEvents {
		t.Errorf("%d places in the ring, want %d", n, historyEvents)
	}
	s, eng := restored(t, data)
	differ(t, "restored", state(s), state(f.s))
	// Event times are known only to the second, so only these may differ in the records.
	if got, want := strings.Count(records(t, eng), "\n"), strings.Count(records(t, f.eng), "\n"); got != want {
		t.Errorf("%d records, want %d", got, want)
	}
}

// Without any request of the v2 API, the dump is the membership alone.
func TestDumpOfNothing(t *testing.T) {
	d := NewDump()
	if err := d.Fill(mem.New()); err != nil {
		t.Fatal(err)
	}
	b, err := d.Marshal()
	if want := `{"Root":{"Path":"/","Children":{"0":{"Path":"/0","Children":{}},"1":{"Path":"/1","Children":{}}}},"CurrentIndex":1,"CurrentVersion":2}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s", b, err, want)
	}
	s, _ := restored(t, b)
	if s.Index() != 1 || s.HasTTL() || len(s.history.events) != 0 {
		t.Errorf("got %s", state(s))
	}
	// The history before it is unknown, and a watch that asks for it gets an error.
	if _, err := s.Watch("/1/a", false, false, 1); err == nil || err.(*Error).Cause != "the requested history has been cleared [2/1]" {
		t.Errorf("a watch of the past: %v", err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	deep := `{"Path":"x"}`
	for range MaxDepth + 1 {
		deep = `{"Children":{"d":` + deep + `}}`
	}
	for _, s := range []string{"", "{", "[]", "null", `{"Root":null}`,
		`{"Root":{"Children":{"1":{"Children":{"a/b":{}}}}}}`,
		`{"Root":{"Children":{"1":{"Children":{"..":{}}}}}}`,
		`{"Root":{"Children":{"1":{"Children":{"":{}}}}}}`,
		`{"Root":{"Children":{"1":{"Children":{"a":null}}}}}`,
		`{"Root":{"Children":{"1":{"Children":{"a":{"CreatedIndex":2}}}}},"CurrentIndex":1}`,
		`{"Root":{"Children":{"1":{"Children":{"a":{"ExpireTime":"9999-01-01T00:00:00Z"}}}}}}`,
		`{"Root":{"Children":{"1":` + deep + `}}}`,
		`{"Root":{"Children":{"1":{"Children":{"` + strings.Repeat("a", MaxPath) + `":{}}}}}}`,
		`{"Root":{},"CurrentIndex":18446744073709551615}`,
		`{"Root":{},"x":[` + strings.Repeat("{},", 1_200_000) + `{}]}`,
	} {
		b := mem.New().NewBatch()
		if err := restore(b, []byte(s)); !errors.Is(err, ErrDump) {
			t.Errorf("%.80s: got %v, want ErrDump", s, err)
		}
	}
}

// If the history is not an unbroken run up to the index, its usable part is used.
func TestRestoreBrokenHistory(t *testing.T) {
	event := func(i int) string {
		return fmt.Sprintf(`{"action":"set","node":{"key":"/1/a","value":"v","modifiedIndex":%d,"createdIndex":%d}}`, i, i)
	}
	for name, c := range map[string]struct {
		queue string
		want  int
	}{
		"whole":          {`"Events":[` + event(9) + `,` + event(7) + `,` + event(8) + `],"Size":3,"Front":1,"Back":1,"Capacity":3`, 3},
		"a gap":          {`"Events":[` + event(6) + `,` + event(8) + `,` + event(9) + `],"Size":3,"Front":0`, 2},
		"ends too early": {`"Events":[` + event(7) + `,` + event(8) + `],"Size":2,"Front":0`, 0},
		"nothing in it":  {`"Events":[null,null,` + event(9) + `],"Size":3,"Front":0`, 1},
		"bad numbers":    {`"Events":[` + event(9) + `],"Size":3,"Front":-1`, 0},
		"unknown action": {`"Events":[{"action":"boil","node":{"key":"/1/a","modifiedIndex":8}},` + event(9) + `],"Size":2,"Front":0`, 1},
	} {
		s, _ := restored(t, []byte(`{"Root":{},"CurrentIndex":9,"WatcherHub":{"EventHistory":{"Queue":{`+c.queue+`}}}}`))
		if len(s.history.events) != c.want || s.Index() != 9 {
			t.Errorf("%s: %d events, index %d; want %d, 9", name, len(s.history.events), s.Index(), c.want)
		}
	}
}

// FuzzRestore looks for dumps that panic or become records that cannot be loaded.
func FuzzRestore(f *testing.F) {
	f.Add(etcdDump(f))
	f.Add([]byte(`{"Root":{"Children":{"1":{"Children":{"a":{"Value":"v","ExpireTime":"2030-01-01T00:00:00Z"}}}}},"CurrentIndex":9}`))
	f.Add([]byte(`{"Root":{},"CurrentIndex":9,"WatcherHub":{"EventHistory":{"Queue":{"Events":[{"action":"set","node":{"key":"/1/a","modifiedIndex":9,"expiration":"2030-01-01T00:00:00Z","ttl":-5}}],"Size":1,"Front":0}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		eng := mem.New()
		b := eng.NewBatch()
		if err := restore(b, data); err != nil {
			if !errors.Is(err, ErrDump) {
				t.Fatalf("not an ErrDump: %v", err)
			}
			return
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		s, err := Load(eng, options())
		if err != nil {
			t.Fatalf("the records of a dump: %v", err)
		}
		d := NewDump()
		if err := d.Fill(eng); err != nil {
			t.Fatal(err)
		}
		again, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if s.Index() == 0 {
			return
		}
		s2, _ := restored(t, again)
		differ(t, "again", state(s2), state(s))
	})
}
