package v2http

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func serve(t *testing.T, m *node) *httptest.Server {
	s := httptest.NewServer(m.handler(Options{}))
	t.Cleanup(s.Close)
	return s
}

func put(t *testing.T, m *node, h http.Handler, key, params string) {
	t.Helper()
	if got := ask(t, h, "PUT", "/v2/keys"+key+"?"+params, "", ""); !strings.HasPrefix(got, "20") {
		t.Fatalf("PUT %s: %s", key, got)
	}
}

// short formats an event without its previous node.
func short(line string) string {
	line, _, _ = strings.Cut(strings.TrimSpace(line), `,"prevNode"`)
	return line
}

func TestLongPoll(t *testing.T) {
	m := newNode(t)
	h, s := m.handler(Options{}), serve(t, m)
	put(t, m, h, "/a", "value=1") // 4
	put(t, m, h, "/_h/x", "value=1")
	put(t, m, h, "/a", "value=2") // 6
	for _, tt := range []struct {
		what, target string
		then         func()
		want         string
	}{
		{"the past", "/v2/keys/a?wait=true&waitIndex=4", nil, `{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":4,"createdIndex":4}}`},
		{"the rest of the past", "/v2/keys/a?wait=true&waitIndex=5", nil, `{"action":"set","node":{"key":"/a","value":"2","modifiedIndex":6,"createdIndex":6}`},
		{"hidden in the past is seen", "/v2/keys/?wait=true&recursive=true&waitIndex=5", nil, `{"action":"set","node":{"key":"/_h/x","value":"1","modifiedIndex":5,"createdIndex":5}}`},
		{"a refresh is not", "/v2/keys/t?wait=true", func() {
			put(t, m, h, "/t", "value=1&ttl=1000") // 7
		}, `{"action":"set","node":{"key":"/t","value":"1","expiration":"2026-03-01T12:16:40.000000005Z","ttl":1000,"modifiedIndex":7,"createdIndex":7}}`},
		{"a refresh is not, live", "/v2/keys/t?wait=true", func() {
			put(t, m, h, "/t", "ttl=500&refresh=true&prevExist=true") // 8
			put(t, m, h, "/t", "value=3")                             // 9
		}, `{"action":"set","node":{"key":"/t","value":"3","modifiedIndex":9,"createdIndex":9}`},
		{"hidden, live", "/v2/keys/?wait=true&recursive=true", func() {
			put(t, m, h, "/_h/x", "value=2") // 10
			put(t, m, h, "/b", "value=1")    // 11
		}, `{"action":"set","node":{"key":"/b","value":"1","modifiedIndex":11,"createdIndex":11}}`},
		{"the hidden itself", "/v2/keys/_h/x?wait=true", func() { put(t, m, h, "/_h/x", "value=3") },
			`{"action":"set","node":{"key":"/_h/x","value":"3","modifiedIndex":12,"createdIndex":12}`},
		{"the future", "/v2/keys/b?wait=true&waitIndex=14", func() {
			put(t, m, h, "/b", "value=2") // 13
			put(t, m, h, "/b", "value=3") // 14
		}, `{"action":"set","node":{"key":"/b","value":"3","modifiedIndex":14,"createdIndex":14}`},
	} {
		index := m.store.Index()
		resp := open(t, s, tt.target)
		if got := fmt.Sprint(resp.StatusCode, resp.Header["Content-Type"], resp.Header["X-Etcd-Index"], resp.Header["X-Raft-Term"]); got != fmt.Sprintf("200 [application/json] [%d] [2]", index) {
			t.Errorf("%s: headers %s", tt.what, got)
		}
		if tt.then != nil {
			tt.then()
		}
		body := rest(t, resp.Body)
		if short(body) != tt.want || strings.Count(body, "\n") != 1 {
			t.Errorf("%s:\ngot  %swant %s", tt.what, body, tt.want)
		}
	}
	for i := range 1000 {
		put(t, m, h, "/fill", fmt.Sprint("value=", i))
	}
	want := `400 {"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"the requested history has been cleared [15/14]","index":1014}`
	if got := ask(t, h, "GET", "/v2/keys/b?wait=true&waitIndex=14", "", ""); got != want {
		t.Errorf("cleared:\ngot  %s\nwant %s", got, want)
	}
}

// A stream that begins in the past continues with new events.
func TestStream(t *testing.T) {
	m := newNode(t)
	h, s := m.handler(Options{}), serve(t, m)
	for i := range 3 {
		put(t, m, h, "/d/k", fmt.Sprint("value=", i))
	}
	lines := bufio.NewReader(open(t, s, "/v2/keys/d?wait=true&recursive=true&stream=true&waitIndex=5").Body)
	for i := range 3 {
		put(t, m, h, "/d/k", fmt.Sprint("value=", 3+i))
	}
	for i := range 5 {
		line, err := lines.ReadString('\n')
		want := fmt.Sprintf(`{"action":"set","node":{"key":"/d/k","value":"%d","modifiedIndex":%d,"createdIndex":%[2]d}`, i+1, i+5)
		if err != nil || short(line) != want {
			t.Fatalf("event %d: %s %v\nwant %s", i, line, err, want)
		}
	}
}

// A client that does not read events loses its watch when more than 100 wait, and the
// server loses nothing else.
func TestSlowClient(t *testing.T) {
	m := newNode(t)
	h := m.handler(Options{})
	// The client does not read, so a write ends only with the request.
	w := &stuck{header: http.Header{}, written: make(chan string)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/v2/keys/k?wait=true&stream=true", nil))
	}()
	<-w.written // the headers
	if got := string(m.V2Stats()); !strings.HasSuffix(got, `"watchers":1}`) {
		t.Errorf("no watcher: %s", got)
	}
	for i := range 300 {
		put(t, m, h, "/k", fmt.Sprint("value=", i))
	}
	if got := string(m.V2Stats()); !strings.HasSuffix(got, `"watchers":0}`) {
		t.Errorf("the watcher is still there: %s", got)
	}
	n := 0
	for done := false; !done; {
		select {
		case <-w.written:
			n++
		case <-ended:
			done = true
		}
	}
	// One event is being written while the others have to wait.
	if n < 100 || n > 102 {
		t.Errorf("%d events came", n)
	}
}

// stuck is a client that reads only when told to.
type stuck struct {
	header  http.Header
	written chan string
}

func (s *stuck) Header() http.Header         { return s.header }
func (s *stuck) WriteHeader(int)             { s.written <- "headers" }
func (s *stuck) Write(b []byte) (int, error) { s.written <- string(b); return len(b), nil }
func (s *stuck) Flush()                      {}

func TestTooManyWatches(t *testing.T) {
	m := newNode(t)
	h := &handler{b: m, lg: nop, o: Options{RequestTimeout: limit, Now: m.clock}, auth: authOf(m)}
	h.watching.Store(maxWatches)
	want := `500 {"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: too many requests","index":0}`
	if got := ask(t, http.HandlerFunc(h.keys), "GET", "/v2/keys/k?wait=true", "", ""); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := h.watching.Load(); got != maxWatches {
		t.Errorf("%d watches are left, want %d", got, maxWatches)
	}
}
