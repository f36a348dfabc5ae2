package v2store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/legacy/v2request"
)

func TestBounds(t *testing.T) {
	noSpace := `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: mvcc: database space exceeded","index":0}`
	tooLarge := `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request is too large","index":0}`
	f := newFixture(t)
	f.do(put("/d/f", "1"))
	deep := strings.Repeat("/d", MaxDepth-1)
	for _, c := range []struct {
		name  string
		nodes int   // missing up to the limit
		bytes int64 // likewise
		r     v2request.Request
		want  string // "" if it succeeds
	}{
		{"a node too many", 0, 99, put("/e", ""), noSpace},
		{"a directory too many", 1, 99, put("/e/f", ""), noSpace},
		{"room for both", 2, 99, put("/e/f", ""), ""},
		{"no node more", 0, 99, put("/d/f", "22"), ""},
		{"a byte too many", 9, 4, put("/g", "1"), noSpace},
		{"room for it", 9, 5, put("/g", "1"), ""},
		{"a longer value", 9, 1, put("/g", "333"), noSpace},
		{"a longer value by update", 9, 1, with(put("/g", "333"), exist), noSpace},
		{"a longer value by a swap", 9, 1, with(put("/g", "333"), value("1")), noSpace},
		{"as long as before", 9, 0, put("/g", "2"), ""},
		{"shorter", -5, -5, with(put("/g", ""), exist), ""},
		{"deleted", -5, -5, with(put("/g", ""), method("DELETE")), ""},
		{"below the directories of a longer path", 9, 16, put("/x/y/z", "1"), noSpace}, // 4+6+8 and 1
		{"a path too deep", 9999, 9999999, put(deep+"/x", ""), tooLarge},
		{"a path as deep as may be", 9999, 9999999, put(deep, ""), ""},
		{"a path too long", 9, 99999, put("/"+strings.Repeat("x", MaxPath-2), ""), tooLarge},
		{"a path as long as may be", 9, 99999, put("/"+strings.Repeat("x", MaxPath-3), ""), ""},
		{"a path that becomes too long", 9, 99999, with(put("/"+strings.Repeat("y", MaxPath-20), ""), method("POST")), tooLarge},
	} {
		nodes, bytes := f.s.nodes, f.s.bytes
		f.s.nodes, f.s.bytes = MaxNodes-c.nodes, MaxBytes-c.bytes
		before, at := len(f.s.root.children), f.s.index
		got := f.do(c.r)
		refused := strings.Contains(got, `"errorCode"`)
		if refused != (c.want != "") || refused && (got != c.want || f.s.nodes != MaxNodes-c.nodes || f.s.bytes != MaxBytes-c.bytes || f.s.index != at || len(f.s.root.children) != before) {
			t.Errorf("%s: got %.200s, want %s", c.name, got, c.want)
		}
		f.s.nodes += nodes - (MaxNodes - c.nodes)
		f.s.bytes += bytes - (MaxBytes - c.bytes)
	}
	mine := state(f.s)
	f.reload()
	differ(t, "the records", state(f.s), mine)
	if got := f.get("/1"+deep, true); strings.Contains(got, "errorCode") {
		t.Errorf("the deepest directory: %s", got)
	}
}

// Records that this store does not write are rejected, and the error names them.
func TestLoadRefuses(t *testing.T) {
	state := func(index byte) []byte {
		return append([]byte{recordVersion, stateWritten, index}, make([]byte, len(new(Stats).writes()))...)
	}
	file, folder := []byte{0, 1, 1, 0, 'v'}, []byte{nodeDir, 1, 1, 0}
	for name, records := range map[string]map[string][]byte{
		"no key":                        {"": nil},
		"unknown key":                   {"x": nil},
		"state cut":                     {"i": state(1)[:4]},
		"state too long":                {"i": append(state(1), 0)},
		"state of the future":           {"i": {2}},
		"unknown flags":                 {"i": {recordVersion, 2, 1}},
		"index too high":                {"i": append([]byte{recordVersion, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, make([]byte, 13)...)},
		"node of the future":            {"i": state(1), "n/1/a": {0, 2, 1, 0}},
		"node cut":                      {"i": state(1), "n/1/a": {0, 1}},
		"node with flags":               {"i": state(1), "n/1/a": {8, 1, 1, 0}},
		"directory and value":           {"i": state(1), "n/1/a": {nodeDir, 1, 1, 0, 'v'}},
		"no directory":                  {"i": state(1), "n/1/a/b": file},
		"below a file":                  {"i": state(1), "n/1/a": file, "n/1/a/b": file},
		"an odd path":                   {"i": state(1), "n/1/a": folder, "n/1/a/": file},
		"a relative path":               {"i": state(1), "n1": file},
		"the root":                      {"i": state(1), "n/": folder},
		"membership":                    {"i": state(1), "n/0/a": file},
		"a path too long":               {"i": state(1), "n/" + strings.Repeat("a", MaxPath): file},
		"events without end":            {"i": state(9), "h\x00\x00\x00\x00\x00\x00\x00\x01": {0}},
		"a gap in events":               {"i": state(3), "h\x00\x00\x00\x00\x00\x00\x00\x01": {0}, "h\x00\x00\x00\x00\x00\x00\x00\x03": {0}},
		"event cut":                     {"i": state(1), "h\x00\x00\x00\x00\x00\x00\x00\x01": {1, eventValue, 0, 1, '/', 1, 9}},
		"event of action 99":            {"i": state(1), "h\x00\x00\x00\x00\x00\x00\x00\x01": {99, 0, 0, 1, '/', 1}},
		"event too long":                {"i": state(1), "h\x00\x00\x00\x00\x00\x00\x00\x01": {1, 0, 0, 1, '/', 1, 9}},
		"event with a value of nothing": {"i": state(1), "h\x00\x00\x00\x00\x00\x00\x00\x01": {1, eventPrevValue, 0, 1, '/', 1}},
	} {
		eng := mem.New()
		b := eng.NewBatch()
		for k, v := range records {
			b.Set(engine.V2.K([]byte(k)), v)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		var ce *engine.CorruptionError
		if _, err := Load(eng, options()); !errors.As(err, &ce) {
			t.Errorf("%s: got %v, want a CorruptionError", name, err)
		}
	}
}

// Readers, watchers and the applying goroutine run concurrently, for the race detector.
func TestReadersBesideApply(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if i%2 == 0 {
					_, _ = f.s.Get("/1", true, true)
					_, _, _ = f.s.Index(), f.s.HasTTL(), f.s.StatsJSON()
					continue
				}
				w, err := f.s.Watch("/1/d", true, i == 1, 0)
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-w.Events():
				case <-stop:
				}
				w.Close()
			}
		})
	}
	for i := range 300 {
		f.do(with(put(fmt.Sprintf("/d/%d/x", i%9), "v"), ttl(int64(i))))
		if i%20 == 0 {
			f.do(with(put("/d", ""), all(method("DELETE"), recursive)))
		}
	}
	close(stop)
	f.s.Close()
	wg.Wait()
}
