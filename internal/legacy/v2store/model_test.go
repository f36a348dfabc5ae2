package v2store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/engine/mem"
	"quorate/internal/legacy/v2request"
)

// model is the v2 store as a list of paths: slow, without a tree, records or limits.
type model struct {
	index  uint64
	nodes  map[string]entry
	events []string
}

type entry struct {
	dir               bool
	value             string
	created, modified uint64
	expire            int64
}

func (m *model) fail(code int, cause string) string {
	return text(nil, NewError(code, cause, m.index))
}

func (m *model) seen(p string, at int64) *Node {
	n := m.nodes[p]
	out := &Node{Key: p, Dir: n.dir, ModifiedIndex: n.modified, CreatedIndex: n.created}
	if !n.dir {
		out.Value = &n.value
	}
	if n.expire != 0 {
		t := time.Unix(0, n.expire).UTC()
		out.Expiration = &t
		out.TTL = int64((time.Duration(n.expire-at) + time.Second - 1) / time.Second)
		if n.expire < at {
			out.TTL = int64(time.Duration(n.expire-at) / time.Second)
		}
	}
	return out
}

// find returns what stops a walk to p: a file on the way, or a missing node.
func (m *model) find(p string) string {
	names := strings.Split(p, "/")[1:]
	at := ""
	for i, name := range names {
		at += "/" + name
		n, ok := m.nodes[at]
		if !ok {
			return m.fail(CodeKeyNotFound, at)
		}
		if !n.dir && i < len(names)-1 {
			return m.fail(CodeNotDir, at)
		}
	}
	return ""
}

func (m *model) event(action string, n, prev *Node, refresh bool) string {
	n.ModifiedIndex = m.index
	e := &Event{Action: action, Node: n, PrevNode: prev}
	b, _ := json.Marshal(e)
	m.events = append(m.events, fmt.Sprintf("%s %v", b, refresh))
	return text(e, nil)
}

func (m *model) below(p string) (out []string) {
	for k := range m.nodes {
		if strings.HasPrefix(k, p+"/") {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func (m *model) make(p, action string, r *v2request.Request, refresh bool) string {
	if p == "/1" {
		return m.fail(CodeRootReadOnly, "/")
	}
	for d := path.Dir(p); d != "/"; d = path.Dir(d) {
		if n, ok := m.nodes[d]; ok && !n.dir {
			return m.fail(CodeNotDir, d)
		}
	}
	old, ok := m.nodes[p]
	if ok && action == Create {
		return m.fail(CodeNodeExists, p)
	}
	if ok && old.dir {
		return m.fail(CodeNotFile, p)
	}
	var prev *Node
	value := r.Val
	if ok {
		prev = m.seen(p, r.Time)
		if refresh {
			value = old.value
		}
	}
	m.index++
	for d := path.Dir(p); d != "/"; d = path.Dir(d) {
		if _, ok := m.nodes[d]; !ok {
			m.nodes[d] = entry{dir: true, created: m.index, modified: m.index}
		}
	}
	if r.Dir {
		value = ""
	}
	m.nodes[p] = entry{r.Dir, value, m.index, m.index, r.Expiration}
	return m.event(action, m.seen(p, r.Time), prev, refresh)
}

func (m *model) change(p, action string, r *v2request.Request, refresh bool) string {
	if p == "/1" {
		return m.fail(CodeRootReadOnly, "/")
	}
	if stop := m.find(p); stop != "" {
		return stop
	}
	n := m.nodes[p]
	if n.dir && (action == CompareAndSwap || r.Val != "") {
		return m.fail(CodeNotFile, p)
	}
	if action == CompareAndSwap {
		if stop := m.compare(n, r); stop != "" {
			return stop
		}
	}
	prev := m.seen(p, r.Time)
	m.index++
	if !n.dir {
		n.modified = m.index
		if !refresh {
			n.value = r.Val
		}
	}
	n.expire = r.Expiration
	m.nodes[p] = n
	return m.event(action, m.seen(p, r.Time), prev, refresh)
}

func (m *model) compare(n entry, r *v2request.Request) string {
	a, b := r.PrevValue != "" && r.PrevValue != n.value, r.PrevIndex != 0 && r.PrevIndex != n.modified
	values, indexes := fmt.Sprintf("[%s != %s]", r.PrevValue, n.value), fmt.Sprintf("[%d != %d]", r.PrevIndex, n.modified)
	switch {
	case a && b:
		return m.fail(CodeCompareFailed, values+" "+indexes)
	case a:
		return m.fail(CodeCompareFailed, values)
	case b:
		return m.fail(CodeCompareFailed, indexes)
	}
	return ""
}

func (m *model) remove(p, action string, r *v2request.Request) string {
	if p == "/1" && action == Delete {
		return m.fail(CodeRootReadOnly, "/")
	}
	if stop := m.find(p); stop != "" {
		return stop
	}
	n := m.nodes[p]
	switch {
	case action == CompareAndDelete && n.dir, action == Delete && n.dir && !r.Dir && !r.Recursive:
		return m.fail(CodeNotFile, p)
	case action == Delete && !r.Recursive && len(m.below(p)) > 0:
		return m.fail(CodeDirNotEmpty, p)
	case action == CompareAndDelete:
		if stop := m.compare(n, r); stop != "" {
			return stop
		}
	}
	prev := m.seen(p, r.Time)
	m.index++
	for _, k := range append(m.below(p), p) {
		delete(m.nodes, k)
	}
	return m.event(action, &Node{Key: p, Dir: n.dir, CreatedIndex: n.created}, prev, false)
}

func (m *model) sweep(until int64) {
	for {
		first := ""
		for k, n := range m.nodes {
			if f := m.nodes[first]; n.expire != 0 && n.expire <= until && (first == "" || n.expire < f.expire || n.expire == f.expire && k < first) {
				first = k
			}
		}
		if first == "" {
			return
		}
		m.remove(first, Expire, &v2request.Request{Recursive: true, Time: until})
	}
}

func (m *model) apply(r *v2request.Request) string {
	p := path.Clean(r.Path)
	refresh := r.Refresh != nil && *r.Refresh
	conditions := r.PrevIndex != 0 || r.PrevValue != ""
	switch {
	case r.Method == "SYNC":
		m.sweep(r.Time)
		return "null"
	case r.Method == "POST":
		return m.make(fmt.Sprintf("%s/%020d", p, m.index+1), Create, r, false)
	case r.Method == "DELETE" && conditions:
		return m.remove(p, CompareAndDelete, r)
	case r.Method == "DELETE":
		return m.remove(p, Delete, r)
	case r.PrevExist != nil && !*r.PrevExist:
		return m.make(p, Create, r, false)
	case conditions:
		return m.change(p, CompareAndSwap, r, refresh)
	case r.PrevExist != nil:
		return m.change(p, Update, r, refresh)
	}
	if stop := m.find(p); stop != "" && (refresh || !strings.Contains(stop, `"errorCode":100`)) {
		return stop
	}
	return m.make(p, Set, r, refresh)
}

// compareWith checks that a store equals the model, and that its totals match its tree.
func (m *model) compareWith(t *testing.T, s *Store) {
	t.Helper()
	var want, have strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m.nodes)) {
		fmt.Fprintf(&want, "%s %+v\n", k, m.nodes[k])
	}
	found := map[string]entry{}
	nodes, bytes, due := -3, int64(0), 0 // the root, /0 and /1
	s.root.walk("/", func(p string, n *node) {
		nodes++
		bytes += size(p, n.value)
		if n.expire != 0 {
			due++
			if s.due[n.due] != n {
				t.Fatalf("%s is not at its place among those that expire", p)
			}
		}
		if p != "/" && p != "/0" {
			found[p] = entry{n.dir(), n.value, n.created, n.modified, n.expire}
		}
	})
	for _, k := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&have, "%s %+v\n", k, found[k])
	}
	bytes -= int64(len("/") + len("/0") + len("/1"))
	if s.nodes != nodes || s.bytes != bytes || len(s.due) != due || s.index != m.index {
		t.Fatalf("%d nodes, %d bytes, %d that expire, index %d; want %d, %d, %d, %d", s.nodes, s.bytes, len(s.due), s.index, nodes, bytes, due, m.index)
	}
	for _, e := range s.history.events {
		if e == nil {
			continue
		}
		b, _ := json.Marshal(e)
		fmt.Fprintf(&have, "%s %v\n", b, e.Refresh)
	}
	for _, e := range m.events[max(0, len(m.events)-historyEvents):] {
		fmt.Fprintln(&want, e)
	}
	differ(t, "beside the model", have.String(), want.String())
}

// request derives a request from bytes, with few distinct paths, so that requests collide.
func request(next func() byte, now int64) *v2request.Request {
	names := []string{"a", "b", "ab", "_h", "a-"}
	r := &v2request.Request{Method: "PUT", Path: "/1", Time: now}
	for range next() % 4 {
		r.Path += "/" + names[int(next())%len(names)]
	}
	shape := next()
	switch shape % 8 {
	case 0:
		r.Method = "POST"
	case 1, 2:
		r.Method = "DELETE"
	case 3:
		r.Method = "SYNC"
	}
	r.Dir, r.Recursive = shape&8 != 0, shape&16 != 0
	more := next()
	if more&1 != 0 {
		r.Val = string('x' + rune(next()%3))
	}
	if more&2 != 0 {
		r.Expiration = now + int64(next())*int64(100*time.Millisecond)
	}
	switch more >> 2 & 7 {
	case 0:
		r.PrevExist = new(true)
	case 1:
		r.PrevExist = new(false)
	case 2:
		r.PrevValue = string('x' + rune(next()%3))
	case 3:
		r.PrevIndex = uint64(next() % 40)
	case 4:
		r.PrevValue, r.PrevIndex = "x", uint64(next()%20)
	}
	if more&128 != 0 {
		r.Refresh = new(more&64 != 0)
	}
	return r
}

// beside runs requests derived from bytes on a store and on the model. Between them the
// store is loaded again from its records, or power is lost and the unflushed requests are
// applied again, as from the log; all must end with the same records as an undisturbed
// store.
func beside(t *testing.T, next func() byte, more func() bool) {
	f := newFixture(t)
	calm := newFixture(t)
	m := &model{index: 3, nodes: map[string]entry{"/1": {dir: true}}}
	now := start.UnixNano()
	if err := f.eng.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	var since []v2request.Request // the log after the last flush
	for i := 0; more(); i++ {
		now += int64(next()) * int64(10*time.Millisecond)
		r := request(next, now)
		since = append(since, *r)
		want := m.apply(r)
		if got := f.do(*r); got != want {
			t.Fatalf("request %d, %+v: got\n%s\nwant\n%s", i, r, got, want)
		}
		calm.do(*r)
		switch next() % 16 {
		case 0:
			before := state(f.s)
			f.reload()
			differ(t, "read from the records", state(f.s), before)
		case 1:
			before := state(f.s)
			f.eng = f.eng.Crash()
			f.reload()
			for _, r := range since {
				f.do(r)
			}
			differ(t, "after a loss of power", state(f.s), before)
		case 2, 3:
			if err := f.eng.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
			since = nil
		case 4:
			m.compareWith(t, f.s)
		}
	}
	m.compareWith(t, f.s)
	differ(t, "the records", records(t, f.eng), records(t, calm.eng))
}

func TestBesideModel(t *testing.T) {
	for seed := range uint64(16) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		left := 200
		beside(t, func() byte { return byte(rnd.Uint32()) }, func() bool { left--; return left >= 0 })
	}
}

// FuzzBesideModel does what TestBesideModel does with requests that the fuzzer chooses.
func FuzzBesideModel(f *testing.F) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 4 {
		seed := make([]byte, 300)
		for i := range seed {
			seed[i] = byte(rnd.Uint32())
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		next := func() byte {
			if len(data) == 0 {
				return 0
			}
			c := data[0]
			data = data[1:]
			return c
		}
		beside(t, next, func() bool { return len(data) > 0 })
	})
}

// FuzzLoad looks for records, as another member may send them, that panic.
func FuzzLoad(f *testing.F) {
	fx := &fixture{t: nil, eng: mem.New()}
	s, err := Load(fx.eng, options())
	if err != nil {
		f.Fatal(err)
	}
	b := fx.eng.NewBatch()
	for _, r := range []v2request.Request{with(put("/a", "1"), ttl(5)), put("/a", "2"), with(put("/d", ""), dir)} {
		if _, err := s.Apply(b, &r); err != nil {
			f.Fatal(err)
		}
	}
	s.Step(b, 1)
	f.Add([]byte{0}, []byte{'i'}, []byte{1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(appendEvent(nil, s.history.events[1], 5), []byte("n/1/a"), appendNode(nil, s.root.children["1"].children["a"]))
	f.Add(appendEvent(nil, s.history.events[2], 0), []byte("n/1/d/e"), appendNode(nil, s.root.children["1"].children["d"]))
	f.Fuzz(func(t *testing.T, event, key, value []byte) {
		eng := mem.New()
		b := eng.NewBatch()
		b.Set(stateKey, append([]byte{recordVersion, stateWritten, 1}, make([]byte, len(new(Stats).writes()))...))
		b.Set(eventKey(1), event)
		b.Set(append([]byte(stateKey[:1]), key...), value)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		s, err := Load(eng, options())
		if err != nil {
			return
		}
		again := mem.New()
		b = again.NewBatch()
		for _, r := range []v2request.Request{put("/a", "1"), with(put("/d", ""), all(method("DELETE"), recursive)), expireAt(start)} {
			if _, err := s.Apply(b, &r); err != nil {
				_ = err.Error()
			}
		}
		b.Discard()
		if _, err := json.Marshal(s.history.events); err != nil {
			t.Fatal(err)
		}
	})
}
