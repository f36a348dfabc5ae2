package v2store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/legacy/v2request"
)

// start is the time of all requests that do not set another one.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fixture is a store with the engine below it. As in a fresh cluster of one member the
// first request of a client takes index 4.
type fixture struct {
	t   *testing.T
	eng *mem.Engine
	s   *Store
}

func options() Options { return Options{Now: func() time.Time { return start }} }

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, eng: mem.New()}
	f.reload()
	b := f.eng.NewBatch()
	f.s.Step(b, 3)
	f.commit(b)
	return f
}

func (f *fixture) commit(b engine.Batch) {
	f.t.Helper()
	if err := b.Commit(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) reload() {
	f.t.Helper()
	s, err := Load(f.eng, options())
	if err != nil {
		f.t.Fatal(err)
	}
	f.s = s
}

func (f *fixture) apply(r v2request.Request) (*Event, error) {
	f.t.Helper()
	if r.Time == 0 {
		r.Time = start.UnixNano()
	}
	b := f.eng.NewBatch()
	e, err := f.s.Apply(b, &r)
	f.commit(b)
	return e, err
}

// do applies a request and returns what the client would see, without the /1 of paths.
func (f *fixture) do(r v2request.Request) string {
	f.t.Helper()
	return text(f.apply(r))
}

func (f *fixture) get(p string, recursive bool) string { return text(f.s.Get(p, recursive, true)) }

func text(e *Event, err error) string {
	var v any = e
	if err != nil {
		v = err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(b), `"/1`, `"`)
}

func put(p, v string) v2request.Request {
	return v2request.Request{Method: "PUT", Path: "/1" + p, Val: v}
}

// with modifies a request.
func with(r v2request.Request, change func(*v2request.Request)) v2request.Request {
	change(&r)
	return r
}

func dir(r *v2request.Request)       { r.Dir = true }
func exist(r *v2request.Request)     { r.PrevExist = new(true) }
func absent(r *v2request.Request)    { r.PrevExist = new(false) }
func recursive(r *v2request.Request) { r.Recursive = true }
func refresh(r *v2request.Request)   { r.Refresh = new(true) }

func ttl(s int64) func(*v2request.Request) {
	return func(r *v2request.Request) { r.Expiration = start.Add(time.Duration(s) * time.Second).UnixNano() }
}
func value(v string) func(*v2request.Request)  { return func(r *v2request.Request) { r.PrevValue = v } }
func index(i uint64) func(*v2request.Request)  { return func(r *v2request.Request) { r.PrevIndex = i } }
func method(m string) func(*v2request.Request) { return func(r *v2request.Request) { r.Method = m } }

func all(fs ...func(*v2request.Request)) func(*v2request.Request) {
	return func(r *v2request.Request) {
		for _, f := range fs {
			f(r)
		}
	}
}

func expireAt(at time.Time) v2request.Request {
	return v2request.Request{Method: "SYNC", Time: at.UnixNano()}
}

// records returns everything that the engine holds of the store.
func records(t *testing.T, r engine.Reader) string {
	t.Helper()
	lower, upper := engine.V2.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%q %x\n", it.Key(), v)
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// state returns everything that a store exposes: two stores with the same state are the
// same.
func state(s *Store) string {
	var out strings.Builder
	fmt.Fprintf(&out, "index %d nodes %d bytes %d start %d stats %+v\n", s.index, s.nodes, s.bytes, s.history.start, s.stats)
	s.root.walk("/", func(p string, n *node) {
		fmt.Fprintf(&out, "%s dir %v %q created %d modified %d expires %d\n", p, n.dir(), n.value, n.created, n.modified, n.expire)
	})
	for i, e := range s.history.events {
		b, _ := json.Marshal(e)
		fmt.Fprintf(&out, "%d %s %v\n", i, b, e != nil && e.Refresh)
	}
	var q []string
	for _, n := range s.due {
		q = append(q, n.path())
	}
	fmt.Fprintf(&out, "%d due\n", len(q))
	return out.String()
}

// differ returns the first line in which two states differ.
func differ(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s: line %d: got\n%.400s\nwant\n%.400s", what, i, g[i], w[i])
		}
	}
	t.Fatalf("%s: got %d lines, want %d", what, len(g), len(w))
}

func TestOperations(t *testing.T) {
	type step struct {
		r    v2request.Request
		want string
	}
	exp := func(s int64) string { return start.Add(time.Duration(s) * time.Second).Format(time.RFC3339Nano) }
	for name, steps := range map[string][]step{
		"set": {
			{put("/a", "1"), `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{put("/a", "2"), `{"action":"set","node":{"key":"/a","value":"2","modifiedIndex":5,"createdIndex":5},"prevNode":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{put("/b/", ""), `{"action":"set","node":{"key":"/b","value":"","modifiedIndex":6,"createdIndex":6}}`},
			{put("/a/x", "2"), `{"errorCode":104,"message":"Not a directory","cause":"/a","index":6}`},
			{put("/a/x/y", "2"), `{"errorCode":104,"message":"Not a directory","cause":"/a","index":6}`},
			{with(put("/d", "ignored"), dir), `{"action":"set","node":{"key":"/d","dir":true,"modifiedIndex":7,"createdIndex":7}}`},
			{with(put("/d", ""), dir), `{"errorCode":102,"message":"Not a file","cause":"/d","index":7}`},
			{put("/d", "v"), `{"errorCode":102,"message":"Not a file","cause":"/d","index":7}`},
			{with(put("/a", ""), dir), `{"action":"set","node":{"key":"/a","dir":true,"modifiedIndex":8,"createdIndex":8},"prevNode":{"key":"/a","value":"2","modifiedIndex":5,"createdIndex":5}}`},
			{put("", "v"), `{"errorCode":107,"message":"Root is read only","cause":"/","index":8}`},
			{v2request.Request{Method: "PUT", Path: "/0/members/1"}, `{"errorCode":107,"message":"Root is read only","cause":"/","index":8}`},
		},
		"create": {
			{with(put("/d/f", "1"), absent), `{"action":"create","node":{"key":"/d/f","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/d/f", "2"), absent), `{"errorCode":105,"message":"Key already exists","cause":"/d/f","index":4}`},
			{with(put("/d", "2"), absent), `{"errorCode":105,"message":"Key already exists","cause":"/d","index":4}`},
			{with(put("/d/f/g", "2"), absent), `{"errorCode":104,"message":"Not a directory","cause":"/d/f","index":4}`},
			{with(put("/e", ""), all(absent, dir)), `{"action":"create","node":{"key":"/e","dir":true,"modifiedIndex":5,"createdIndex":5}}`},
			{with(put("", ""), absent), `{"errorCode":107,"message":"Root is read only","cause":"/","index":5}`},
			{with(put("/g", "3"), all(absent, index(9), value("x"))), `{"action":"create","node":{"key":"/g","value":"3","modifiedIndex":6,"createdIndex":6}}`},
		},
		"post": {
			{with(put("/q", "1"), method("POST")), `{"action":"create","node":{"key":"/q/00000000000000000004","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/q", "2"), all(method("POST"), dir, ttl(9))), `{"action":"create","node":{"key":"/q/00000000000000000005","dir":true,"expiration":"` + exp(9) + `","ttl":9,"modifiedIndex":5,"createdIndex":5}}`},
			{with(put("", "3"), method("POST")), `{"action":"create","node":{"key":"/00000000000000000006","value":"3","modifiedIndex":6,"createdIndex":6}}`},
			{with(put("/00000000000000000006", "3"), method("POST")), `{"errorCode":104,"message":"Not a directory","cause":"/00000000000000000006","index":6}`},
		},
		"update": {
			{with(put("/no/such", "1"), exist), `{"errorCode":100,"message":"Key not found","cause":"/no","index":3}`},
			{with(put("/a", "1"), ttl(100)), `{"action":"set","node":{"key":"/a","value":"1","expiration":"` + exp(100) + `","ttl":100,"modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", ""), exist), `{"action":"update","node":{"key":"/a","value":"","modifiedIndex":5,"createdIndex":4},"prevNode":{"key":"/a","value":"1","expiration":"` + exp(100) + `","ttl":100,"modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/d", ""), dir), `{"action":"set","node":{"key":"/d","dir":true,"modifiedIndex":6,"createdIndex":6}}`},
			{with(put("/d", "v"), exist), `{"errorCode":102,"message":"Not a file","cause":"/d","index":6}`},
			{with(put("/d", ""), all(exist, ttl(5))), `{"action":"update","node":{"key":"/d","dir":true,"expiration":"` + exp(5) + `","ttl":5,"modifiedIndex":7,"createdIndex":6},"prevNode":{"key":"/d","dir":true,"modifiedIndex":6,"createdIndex":6}}`},
			// The directory keeps its index.
			{with(put("/d", ""), all(exist, ttl(6))), `{"action":"update","node":{"key":"/d","dir":true,"expiration":"` + exp(6) + `","ttl":6,"modifiedIndex":8,"createdIndex":6},"prevNode":{"key":"/d","dir":true,"expiration":"` + exp(5) + `","ttl":5,"modifiedIndex":6,"createdIndex":6}}`},
			{with(put("", ""), exist), `{"errorCode":107,"message":"Root is read only","cause":"/","index":8}`},
		},
		"compare and swap": {
			{put("/a", "1"), `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", "2"), value("x")), `{"errorCode":101,"message":"Compare failed","cause":"[x != 1]","index":4}`},
			{with(put("/a", "2"), index(9)), `{"errorCode":101,"message":"Compare failed","cause":"[9 != 4]","index":4}`},
			{with(put("/a", "2"), all(exist, value("x"), index(9))), `{"errorCode":101,"message":"Compare failed","cause":"[x != 1] [9 != 4]","index":4}`},
			{with(put("/a", "2"), all(exist, value("1"), index(4), ttl(7))), `{"action":"compareAndSwap","node":{"key":"/a","value":"2","expiration":"` + exp(7) + `","ttl":7,"modifiedIndex":5,"createdIndex":4},"prevNode":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", "3"), index(5)), `{"action":"compareAndSwap","node":{"key":"/a","value":"3","modifiedIndex":6,"createdIndex":4},"prevNode":{"key":"/a","value":"2","expiration":"` + exp(7) + `","ttl":7,"modifiedIndex":5,"createdIndex":4}}`},
			{with(put("/b", "3"), index(5)), `{"errorCode":100,"message":"Key not found","cause":"/b","index":6}`},
			{with(put("", "3"), index(5)), `{"errorCode":107,"message":"Root is read only","cause":"/","index":6}`},
			{with(put("/d", ""), dir), `{"action":"set","node":{"key":"/d","dir":true,"modifiedIndex":7,"createdIndex":7}}`},
			{with(put("/d", "3"), index(7)), `{"errorCode":102,"message":"Not a file","cause":"/d","index":7}`},
		},
		"delete": {
			{put("/d/f", "1"), `{"action":"set","node":{"key":"/d/f","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{put("/d/_h", "1"), `{"action":"set","node":{"key":"/d/_h","value":"1","modifiedIndex":5,"createdIndex":5}}`},
			{with(put("/d", ""), method("DELETE")), `{"errorCode":102,"message":"Not a file","cause":"/d","index":5}`},
			{with(put("/d", ""), all(method("DELETE"), dir)), `{"errorCode":108,"message":"Directory not empty","cause":"/d","index":5}`},
			{with(put("/d/f", ""), all(method("DELETE"), dir)), `{"action":"delete","node":{"key":"/d/f","modifiedIndex":6,"createdIndex":4},"prevNode":{"key":"/d/f","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/d", ""), all(method("DELETE"), dir)), `{"errorCode":108,"message":"Directory not empty","cause":"/d","index":6}`},
			{with(put("/d", ""), all(method("DELETE"), recursive)), `{"action":"delete","node":{"key":"/d","dir":true,"modifiedIndex":7,"createdIndex":4},"prevNode":{"key":"/d","dir":true,"modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/d", ""), all(method("DELETE"), recursive)), `{"errorCode":100,"message":"Key not found","cause":"/d","index":7}`},
			{with(put("", ""), all(method("DELETE"), recursive)), `{"errorCode":107,"message":"Root is read only","cause":"/","index":7}`},
			{with(put("/e", ""), dir), `{"action":"set","node":{"key":"/e","dir":true,"modifiedIndex":8,"createdIndex":8}}`},
			{with(put("/e", ""), all(method("DELETE"), dir)), `{"action":"delete","node":{"key":"/e","dir":true,"modifiedIndex":9,"createdIndex":8},"prevNode":{"key":"/e","dir":true,"modifiedIndex":8,"createdIndex":8}}`},
		},
		"compare and delete": {
			{put("/a", "1"), `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", ""), all(method("DELETE"), value("2"))), `{"errorCode":101,"message":"Compare failed","cause":"[2 != 1]","index":4}`},
			{with(put("/b", ""), all(method("DELETE"), value("2"))), `{"errorCode":100,"message":"Key not found","cause":"/b","index":4}`},
			{with(put("", ""), all(method("DELETE"), value("2"), recursive)), `{"errorCode":102,"message":"Not a file","cause":"","index":4}`},
			{with(put("/a", ""), all(method("DELETE"), index(4))), `{"action":"compareAndDelete","node":{"key":"/a","modifiedIndex":5,"createdIndex":4},"prevNode":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
		},
		"refresh": {
			{with(put("/a", ""), all(refresh, ttl(5))), `{"errorCode":100,"message":"Key not found","cause":"/a","index":3}`},
			{put("/a", "1"), `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", ""), all(refresh, ttl(5))), `{"action":"set","node":{"key":"/a","value":"1","expiration":"` + exp(5) + `","ttl":5,"modifiedIndex":5,"createdIndex":5},"prevNode":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/a", ""), all(refresh, exist, ttl(6))), `{"action":"update","node":{"key":"/a","value":"1","expiration":"` + exp(6) + `","ttl":6,"modifiedIndex":6,"createdIndex":5},"prevNode":{"key":"/a","value":"1","expiration":"` + exp(5) + `","ttl":5,"modifiedIndex":5,"createdIndex":5}}`},
			{with(put("/a", ""), all(refresh, index(6), ttl(7))), `{"action":"compareAndSwap","node":{"key":"/a","value":"1","expiration":"` + exp(7) + `","ttl":7,"modifiedIndex":7,"createdIndex":5},"prevNode":{"key":"/a","value":"1","expiration":"` + exp(6) + `","ttl":6,"modifiedIndex":6,"createdIndex":5}}`},
			{with(put("/d", ""), all(dir, ttl(7))), `{"action":"set","node":{"key":"/d","dir":true,"expiration":"` + exp(7) + `","ttl":7,"modifiedIndex":8,"createdIndex":8}}`},
			{with(put("/d", ""), all(refresh, ttl(8))), `{"errorCode":102,"message":"Not a file","cause":"/d","index":8}`},
			// Nothing else is refreshed.
			{with(put("/a", ""), all(refresh, method("DELETE"))), `{"action":"delete","node":{"key":"/a","modifiedIndex":9,"createdIndex":5},"prevNode":{"key":"/a","value":"1","expiration":"` + exp(7) + `","ttl":7,"modifiedIndex":7,"createdIndex":5}}`},
		},
		"times": {
			{with(put("/a", "1"), ttl(0)), `{"action":"set","node":{"key":"/a","value":"1","expiration":"` + exp(0) + `","modifiedIndex":4,"createdIndex":4}}`},
			{with(put("/b", "1"), ttl(-40*365*86400)), `{"action":"set","node":{"key":"/b","value":"1","modifiedIndex":5,"createdIndex":5}}`},
			{with(put("/b", "1"), all(exist, ttl(-40*365*86400))), `{"action":"update","node":{"key":"/b","value":"1","expiration":"` + exp(-40*365*86400) + `","ttl":-1261440000,"modifiedIndex":6,"createdIndex":5},"prevNode":{"key":"/b","value":"1","modifiedIndex":5,"createdIndex":5}}`},
		},
		"other methods": {
			{v2request.Request{Method: "PATCH", Path: "/1/a"}, `{}`},
			{v2request.Request{Method: "QGET", Path: "/1/a"}, `{"errorCode":100,"message":"Key not found","cause":"/a","index":3}`},
			{v2request.Request{Method: "QGET", Path: "/"}, `{"action":"get","node":{"key":"/","dir":true,"nodes":[{"key":"/0","dir":true},{"key":"","dir":true}]}}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			for i, st := range steps {
				if got := f.do(st.r); got != st.want {
					t.Errorf("step %d, %s %s: got\n%s\nwant\n%s", i, st.r.Method, st.r.Path, got, st.want)
				}
				before := state(f.s)
				f.reload()
				differ(t, "the records", state(f.s), before)
			}
		})
	}
}

func TestList(t *testing.T) {
	f := newFixture(t)
	for _, k := range []string{"/d/b/x", "/d/_hid/y", "/d/c", "/d/a", "/d/b/_z", "/d/b-"} {
		f.do(put(k, "v"))
	}
	for _, c := range []struct {
		path      string
		recursive bool
		want      string
	}{
		{"/1/d", false, `{"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/a","value":"v","modifiedIndex":7,"createdIndex":7},{"key":"/d/b","dir":true,"modifiedIndex":4,"createdIndex":4},{"key":"/d/b-","value":"v","modifiedIndex":9,"createdIndex":9},{"key":"/d/c","value":"v","modifiedIndex":6,"createdIndex":6}],"modifiedIndex":4,"createdIndex":4}}`},
		{"/1/d/", true, `{"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/a","value":"v","modifiedIndex":7,"createdIndex":7},{"key":"/d/b","dir":true,"nodes":[{"key":"/d/b/x","value":"v","modifiedIndex":4,"createdIndex":4}],"modifiedIndex":4,"createdIndex":4},{"key":"/d/b-","value":"v","modifiedIndex":9,"createdIndex":9},{"key":"/d/c","value":"v","modifiedIndex":6,"createdIndex":6}],"modifiedIndex":4,"createdIndex":4}}`},
		{"/1/d/_hid", true, `{"action":"get","node":{"key":"/d/_hid","dir":true,"nodes":[{"key":"/d/_hid/y","value":"v","modifiedIndex":5,"createdIndex":5}],"modifiedIndex":5,"createdIndex":5}}`},
		{"/1/d/c/x", true, `{"errorCode":104,"message":"Not a directory","cause":"/d/c","index":9}`},
		{"/1/e/c/x", true, `{"errorCode":100,"message":"Key not found","cause":"/e","index":9}`},
		{"/1", false, `{"action":"get","node":{"key":"","dir":true,"nodes":[{"key":"/d","dir":true,"modifiedIndex":4,"createdIndex":4}]}}`},
	} {
		if got := f.get(c.path, c.recursive); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.path, got, c.want)
		}
	}
}

// A tree that no client has changed holds its index alone, and may be given another one.
// Refused requests do not change that; the first change records everything.
func TestWritten(t *testing.T) {
	f := newFixture(t)
	before := records(t, f.eng)
	f.do(with(put("/a", "1"), exist))
	f.do(with(put("/a", "1"), method("DELETE")))
	f.do(expireAt(start))
	if f.s.Written() || f.s.Stats() != (Stats{}) {
		t.Errorf("written %v, %+v", f.s.Written(), f.s.Stats())
	}
	differ(t, "after refusals", records(t, f.eng), before)
	b := f.eng.NewBatch()
	f.s.Rebase(b, 1500)
	f.commit(b)
	differ(t, "after Rebase", records(t, f.eng), "")
	if e, err := f.apply(put("/a", "1")); err != nil || e.Index() != 1501 || !f.s.Written() {
		t.Errorf("got %+v, %v, written %v", e, err, f.s.Written())
	}
	b = f.eng.NewBatch()
	f.s.Rebase(b, 7)
	f.commit(b)
	mine := state(f.s)
	f.reload()
	differ(t, "the records", state(f.s), mine)
	if !f.s.Written() || f.s.Index() != 1501 {
		t.Errorf("index %d, written %v", f.s.Index(), f.s.Written())
	}
	// What a dump shows, other members have seen as well.
	d := NewDump()
	if err := d.Fill(f.eng); err != nil {
		t.Fatal(err)
	}
	data, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := restored(t, data); !s.Written() {
		t.Error("not written after a dump and back")
	}
	f = newFixture(t)
	d = NewDump()
	if err := d.Fill(f.eng); err != nil {
		t.Fatal(err)
	}
	if data, err = d.Marshal(); err != nil {
		t.Fatal(err)
	}
	if s, _ := restored(t, data); s.Written() || s.Index() != 3 {
		t.Errorf("index %d, written %v after a dump of the membership and back", s.Index(), s.Written())
	}
}

// Nodes with the same expiration expire in the order of their paths, in whatever order they
// were created.
func TestOrderOfExpiry(t *testing.T) {
	f := newFixture(t)
	for _, k := range []string{"/c", "/a", "/d", "/b"} {
		f.do(with(put(k, "1"), ttl(1)))
	}
	w := f.watch("/1", true, true, 0)
	f.do(expireAt(start.Add(time.Second)))
	if g, want := strings.Join(got(w), " "), "expire /a@8 expire /b@9 expire /c@10 expire /d@11"; g != want {
		t.Errorf("got %s, want %s", g, want)
	}
}

// As in etcd 3.5, some refusals count as successes, and a create below a file counts twice.
func TestStats(t *testing.T) {
	f := newFixture(t)
	for _, r := range []v2request.Request{put("/a", "1"), put("/a/b", "1"), put("", "1"), with(put("/a/b", "1"), absent),
		with(put("", ""), exist), with(put("", ""), index(1)), with(put("", ""), all(method("DELETE"), recursive)),
		with(put("/d", ""), dir), with(put("/d", "v"), exist), with(put("/d", "v"), index(1)),
		with(put("/a", ""), all(method("DELETE"), value("x"))), with(put("/d", ""), all(method("DELETE"), value("x"))),
		with(put("/n", ""), all(method("DELETE"), value("x"))), with(put("/a", ""), index(1)), with(put("/n", ""), method("DELETE"))} {
		f.do(r)
	}
	want := Stats{SetsSuccess: 2, SetsFail: 3, CreateFail: 1, UpdateSuccess: 2, CompareAndSwapSuccess: 1, CompareAndSwapFail: 2,
		DeleteSuccess: 1, DeleteFail: 1, CompareAndDeleteSuccess: 2, CompareAndDeleteFail: 1}
	if got := f.s.Stats(); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
