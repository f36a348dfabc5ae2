package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// v2Fake is a directory of the v2 API as far as a register needs it.
type v2Fake struct {
	mu     sync.Mutex
	index  uint64
	size   string
	nodes  []v2Node
	fail   int // answers with 503 before the service works
	more   chan struct{}
	server *httptest.Server
}

func newV2Fake(t *testing.T, size string) *v2Fake {
	f := &v2Fake{size: size, index: 7, more: make(chan struct{})}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func (f *v2Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	key := strings.TrimPrefix(r.URL.Path, "/tok")
	answer := func(status int, v any) {
		w.Header().Set("X-Etcd-Index", fmt.Sprint(f.index))
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	notFound := v2Error{Code: 100, Message: "Key not found", Cause: key, Index: f.index}
	switch {
	case key == "/_config/size" && f.size == "":
		answer(http.StatusNotFound, notFound)
	case key == "/_config/size" && f.size == "html":
		fmt.Fprint(w, "<html>")
	case key == "/_config/size":
		answer(http.StatusOK, map[string]any{"node": v2Node{Key: key, Value: f.size}})
	case r.Method == http.MethodPut:
		id := "/_disc" + key
		for _, n := range f.nodes {
			if n.Key == id {
				answer(http.StatusPreconditionFailed, v2Error{Code: codeNodeExists, Message: "Key already exists", Cause: key, Index: f.index})
				return
			}
		}
		f.index++
		n := v2Node{Key: id, Value: r.FormValue("value"), CreatedIndex: f.index, ModifiedIndex: f.index}
		f.nodes = append(f.nodes, n)
		close(f.more)
		f.more = make(chan struct{})
		answer(http.StatusCreated, map[string]any{"node": n})
	case r.URL.Query().Get("wait") == "true":
		var from uint64
		fmt.Sscan(r.URL.Query().Get("waitIndex"), &from)
		for {
			for _, n := range f.nodes {
				if n.ModifiedIndex >= from && strings.HasPrefix(n.Key, "/_disc"+key) {
					answer(http.StatusOK, map[string]any{"node": n})
					return
				}
			}
			more := f.more
			f.mu.Unlock()
			select {
			case <-more:
			case <-r.Context().Done():
			}
			f.mu.Lock()
			if r.Context().Err() != nil {
				return
			}
		}
	default:
		nodes := append([]v2Node{{Key: "/_disc/_config"}}, f.nodes...)
		answer(http.StatusOK, map[string]any{"node": v2Node{Key: "/_disc", Nodes: nodes}})
	}
}

func (f *v2Fake) join(ctx context.Context, id, self string) (string, error) {
	j := &v2Joining{V2: V2{URL: f.server.URL + "/tok", Logger: zap.NewNop()}, client: f.server.Client(), id: id, self: self,
		pause: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }, next: firstV2Pause}
	return j.run(ctx)
}

func TestV2(t *testing.T) {
	f := newV2Fake(t, "3")
	f.fail = 3
	var wg sync.WaitGroup
	got := make([]string, 3)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = f.join(t.Context(), fmt.Sprintf("a%d", i), fmt.Sprintf("m%d=http://m%d:1", i, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got[0] != got[1] || got[1] != got[2] || strings.Count(got[0], "=") != 3 {
		t.Errorf("%q", got)
	}
	if _, err := f.join(t.Context(), "late", "late=http://l:1"); !errors.Is(err, ErrFull) {
		t.Errorf("a fourth: %v", err)
	}
}

// An observer waits for the founders, and gets the same answer as they do.
func TestV2Observe(t *testing.T) {
	f := newV2Fake(t, "2")
	look := func() string {
		got, err := V2{URL: f.server.URL + "/tok", Logger: zap.NewNop()}.Observe(t.Context())
		if err != nil {
			t.Error(err)
		}
		return got
	}
	early := make(chan string)
	go func() { early <- look() }()
	founders := make(chan string)
	for _, id := range []string{"a", "b"} {
		go func() {
			got, err := f.join(t.Context(), id, id+"=http://"+id+":1")
			if err != nil {
				t.Error(err)
			}
			founders <- got
		}()
	}
	want := <-founders
	for _, got := range []string{<-founders, <-early, look()} {
		if got != want || strings.Count(got, "=") != 2 {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestV2Refuses(t *testing.T) {
	for _, tc := range []struct{ size, want string }{
		{"", "100: Key not found (/_config/size) [7]"}, {"x", "discovery: size key is bad"}, {"0", "discovery: size key is bad"},
		{"html", "discovery: bad discovery endpoint"},
	} {
		if _, err := newV2Fake(t, tc.size).join(t.Context(), "a", "a=http://a:1"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("size %q: %v, want %q", tc.size, err, tc.want)
		}
	}
	twice := newV2Fake(t, "2")
	twice.nodes = []v2Node{{Key: "/_disc/a", Value: "a=http://a:1", CreatedIndex: 1, ModifiedIndex: 1}}
	if _, err := twice.join(t.Context(), "a", "a=http://a:1"); !errors.Is(err, ErrDuplicateID) {
		t.Errorf("the same member again: %v", err)
	}
	if _, err := twice.join(t.Context(), "b", "a=http://b:1"); !errors.Is(err, ErrDuplicateName) {
		t.Errorf("the same name: %v", err)
	}
	odd := newV2Fake(t, "2")
	odd.nodes = []v2Node{{Key: "/_disc/a", Value: "nothing", CreatedIndex: 1, ModifiedIndex: 1}}
	if _, err := odd.join(t.Context(), "b", "b=http://b:1"); !errors.Is(err, ErrInvalidURL) {
		t.Errorf("an entry that is none: %v", err)
	}
}

// Through --discovery-proxy the request line has the whole URL.
func TestV2Proxy(t *testing.T) {
	f := newV2Fake(t, "1")
	asked := make(chan string, 100)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.RequestURI
		f.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	got, err := V2{URL: "http://service.invalid/tok", Proxy: strings.TrimPrefix(proxy.URL, "http://"), Logger: zap.NewNop()}.Join(t.Context(), 10, "a=http://a:1")
	if err != nil || got != "a=http://a:1" {
		t.Fatalf("%q, %v", got, err)
	}
	if uri := <-asked; !strings.HasPrefix(uri, "http://service.invalid/tok/_config/size") {
		t.Errorf("the proxy was asked for %q", uri)
	}
}

func FuzzDecodeV2(f *testing.F) {
	for _, s := range []string{`{"node":{"key":"/a","value":"b","nodes":[{"key":"/a/c"}]}}`, `{"errorCode":100,"message":"m"}`, `{}`, `[]`, ``} {
		f.Add([]byte(s), "7")
	}
	f.Fuzz(func(t *testing.T, body []byte, index string) {
		if n, _, err := decodeV2(body, index); err == nil && n == nil {
			t.Error("neither a node nor an error")
		}
	})
}
