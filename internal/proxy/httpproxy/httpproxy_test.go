package httpproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// rig is a proxy in front of members that the test serves.
type rig struct {
	t     *testing.T
	dir   string
	proxy *Proxy
	front *httptest.Server

	mu      sync.Mutex
	members []membership.Member // nil: no peer answers
	asked   []string            // the peer URLs of the last request
	clock   time.Time
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), "proxy"), clock: time.Unix(1000, 0)}
	tr := NewTransport(TransportOptions{DialTimeout: time.Minute})
	t.Cleanup(tr.CloseIdleConnections)
	p, err := New(Options{Dir: r.dir, Peers: []string{"http://p1:1"}, Logger: zap.NewNop(), Transport: tr, FailureWait: 5 * time.Second,
		Members: func(_ context.Context, peers []string) ([]membership.Member, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.asked = slices.Clone(peers)
			if r.members == nil {
				return nil, errors.New("nobody there")
			}
			return r.members, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	p.dir.shuffle = func(int, func(i, j int)) {} // members come in the order given
	p.dir.now = func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return r.clock }
	r.proxy = p
	r.front = httptest.NewServer(p)
	t.Cleanup(r.front.Close)
	return r
}

// serve starts a member for each handler, and lets the proxy find them.
func (r *rig) serve(handlers ...http.HandlerFunc) (servers []*httptest.Server) {
	var ms []membership.Member
	for i, h := range handlers {
		s := httptest.NewServer(h)
		r.t.Cleanup(s.Close)
		servers = append(servers, s)
		ms = append(ms, membership.Member{ID: ids.Member(i + 1), PeerURLs: []string{fmt.Sprintf("http://p%d:1", i+1)}, ClientURLs: []string{s.URL}})
	}
	r.find(ms)
	return servers
}

func (r *rig) find(ms []membership.Member) bool {
	r.mu.Lock()
	r.members = ms
	r.mu.Unlock()
	return r.proxy.dir.refresh(r.t.Context())
}

func (r *rig) do(method, path, body string) (status int, header http.Header, text string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.front.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "9.9.9.9")
	req.Header.Set("Te", "trailers")
	req.Header.Set("X-Mine", "yes")
	resp, err := r.front.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestRequestsPassUnchanged(t *testing.T) {
	r := newRig(t)
	var got *http.Request
	var body string
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		got, body = q, string(b)
		w.Header().Set("X-Etcd-Index", "7")
		w.Header().Set("Keep-Alive", "timeout=1")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "made")
	})
	status, h, text := r.do("PUT", "/v2/keys/a%2Fb?prevExist=false", "value=1")
	if status != 201 || text != "made" || h.Get("X-Etcd-Index") != "7" {
		t.Errorf("answer %d %q %v", status, text, h)
	}
	if h.Get("Keep-Alive") != "" || h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("the answer has headers that end at the proxy: %v", h)
	}
	if got.Method != "PUT" || got.RequestURI != "/v2/keys/a%2Fb?prevExist=false" || body != "value=1" || got.Host != strings.TrimPrefix(r.front.URL, "http://") {
		t.Errorf("the member got %s %s %q for %s", got.Method, got.RequestURI, body, got.Host)
	}
	if got.Header.Get("X-Mine") != "yes" || got.Header.Get("Te") != "" || got.Header.Get("X-Forwarded-For") != "9.9.9.9, 127.0.0.1" {
		t.Errorf("the member got the headers %v", got.Header)
	}
}

func TestUnreachableMembersAreLeftOut(t *testing.T) {
	r := newRig(t)
	if status, _, text := r.do("GET", "/v2/keys", ""); status != 503 || text != `{"message":"httpproxy: zero endpoints currently available"}` {
		t.Errorf("without members: %d %s", status, text)
	}
	name := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
	}
	servers := r.serve(name("first"), name("second"))
	if _, _, text := r.do("GET", "/", ""); text != "first" {
		t.Errorf("answered by %q", text)
	}
	first := servers[0].Listener.Addr().String()
	servers[0].Close()
	if _, _, text := r.do("GET", "/", ""); text != "second" {
		t.Errorf("answered by %q", text)
	}
	if n := len(r.proxy.dir.available()); n != 1 {
		t.Errorf("%d endpoints after one failed", n)
	}
	servers[1].Close()
	if status, _, text := r.do("GET", "/", ""); status != 502 || text != `{"message":"httpproxy: unable to get response from 1 endpoint(s)"}` {
		t.Errorf("nobody answers: %d %s", status, text)
	}
	r.mu.Lock()
	r.clock = r.clock.Add(5 * time.Second)
	r.mu.Unlock()
	if n := len(r.proxy.dir.available()); n != 2 {
		t.Errorf("%d endpoints after the wait, want both again", n)
	}
	if status, _, text := r.do("GET", "/v2/config/local/proxy", ""); status != 200 || !strings.HasPrefix(text, `{"endpoints":["http://`+first+`",`) || !strings.HasSuffix(text, "]}\n") {
		t.Errorf("configuration: %d %q", status, text)
	}
	if status, h, _ := r.do("PUT", "/v2/config/local/proxy", ""); status != 405 || h.Get("Allow") != "GET" {
		t.Errorf("PUT of the configuration: %d", status)
	}
}

// An error response of a member is an answer.
func TestAnswerOfAMemberIsFinal(t *testing.T) {
	r := newRig(t)
	r.serve(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		func(http.ResponseWriter, *http.Request) { t.Error("the second member was asked, too") })
	if status, _, text := r.do("POST", "/v2/keys", "value=1"); status != 500 || text != "no\n" {
		t.Errorf("got %d %q", status, text)
	}
}

// Events of a watch arrive one by one, and the watch ends when the client goes away.
func TestStream(t *testing.T) {
	r := newRig(t)
	next, gone := make(chan string), make(chan struct{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		defer close(gone)
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case s := <-next:
				fmt.Fprintln(w, s)
				w.(http.Flusher).Flush()
			case <-q.Context().Done():
				return
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", r.front.URL+"/v2/keys/a?wait=true&stream=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.front.Client().Do(req) // returns with the headers, before any event
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"one\n", "two\n"} {
		next <- strings.TrimSpace(want)
		if got, err := lines.ReadString('\n'); err != nil || got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	cancel()
	<-gone
}

// A client must see that an answer was cut off.
func TestCutAnswer(t *testing.T) {
	r := newRig(t)
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "a part")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	resp, err := r.front.Client().Get(r.front.URL)
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("half an answer looks like a whole one")
	}
}

func TestBodyIsBounded(t *testing.T) {
	r := newRig(t)
	r.serve(func(http.ResponseWriter, *http.Request) { t.Error("the request was passed on") })
	w := httptest.NewRecorder()
	r.proxy.ServeHTTP(w, httptest.NewRequest("PUT", "/v2/keys/a", io.LimitReader(zeros{}, maxBody+1)))
	if w.Code != 500 || !strings.HasPrefix(w.Body.String(), `{"message":"httpproxy: failed to read request body: `) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestReadOnly(t *testing.T) {
	h := ReadOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for method, want := range map[string]int{"GET": 418, "HEAD": 501, "OPTIONS": 501, "PUT": 501} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		if w.Code != want || want == 501 && (w.Body.Len() > 0 || len(w.Header()) > 0) {
			t.Errorf("%s: %d %v %q", method, w.Code, w.Header(), w.Body)
		}
	}
}

// The saved peer URLs are used at the next start, and without an answer from any member
// there is nothing to forward to.
func TestPeersAreRemembered(t *testing.T) {
	r := newRig(t)
	if kept, err := Remembered(r.dir); err != nil || !slices.Equal(kept, []string{"http://p1:1"}) {
		t.Fatalf("at the start %v, %v", kept, err)
	}
	ms := []membership.Member{{ID: 2, PeerURLs: []string{"http://p3:1"}, ClientURLs: []string{"http://c3:1", "::"}},
		{ID: 1, PeerURLs: []string{"http://p2:1"}}}
	if !r.find(ms) {
		t.Error("no endpoint found")
	}
	if got := r.proxy.Endpoints(); !slices.Equal(got, []string{"http://c3:1"}) {
		t.Errorf("endpoints %v", got)
	}
	if kept, err := Remembered(r.dir); err != nil || !slices.Equal(kept, []string{"http://p2:1", "http://p3:1"}) {
		t.Errorf("kept %v, %v", kept, err)
	}
	if r.find(nil) || len(r.proxy.Endpoints()) != 0 {
		t.Error("endpoints are left although no peer answers")
	}
	if !slices.Equal(r.asked, []string{"http://p2:1", "http://p3:1"}) {
		t.Errorf("asked %v", r.asked)
	}
	info, err := os.Stat(filepath.Join(r.dir, clusterFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("cluster file: %v %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, clusterFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Remembered(r.dir); err == nil || !strings.Contains(err.Error(), clusterFile) {
		t.Errorf("damaged file: %v", err)
	}
	if kept, err := Remembered(t.TempDir()); err != nil || kept != nil {
		t.Errorf("no file: %v %v", kept, err)
	}
}

func TestRunAsksAgain(t *testing.T) {
	asked := make(chan struct{})
	d := &directory{lg: zap.NewNop(), now: time.Now, shuffle: func(int, func(i, j int)) {},
		members: func(ctx context.Context, _ []string) ([]membership.Member, error) {
			select {
			case asked <- struct{}{}:
			case <-ctx.Done():
			}
			return nil, errors.New("nobody there")
		}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); d.run(ctx, 0) }()
	for range 3 {
		<-asked
	}
	cancel()
	<-ended
}

// A member that goes silent in the middle of an answer does not hold a request forever, if
// the operator sets a timeout.
func TestReadTimeout(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer s.Close()
	defer close(release)
	tr := NewTransport(TransportOptions{ReadTimeout: 50 * time.Millisecond, WriteTimeout: time.Minute})
	defer tr.CloseIdleConnections()
	if resp, err := (&http.Client{Transport: tr}).Get(s.URL); err == nil {
		resp.Body.Close()
		t.Error("a silent member was waited for")
	}
}
