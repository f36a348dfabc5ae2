package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"quorate/compat/harness"
)

// The lane's binaries, relative to this folder: what the make targets build.
var (
	flagA = flag.String("a", "../bin/etcd37", "reference server binary")
	flagB = flag.String("b", "../../bin/etcd", "server binary under test")
	skip  = flag.String("skip", "", "sections to leave out, comma separated")
)

const limit = 45 * time.Second // for every wait on a server

// pair starts one member of each binary. Both advertise the same URLs, so their ids are equal.
func pair(t *testing.T, args ...string) [2]*harness.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	var members [2]*harness.Member
	var errs [2]error
	var wg sync.WaitGroup
	for i, bin := range []string{*flagA, *flagB} {
		if _, err := os.Stat(bin); err != nil {
			t.Fatalf("server binary: %v (build both first)", err)
		}
		wg.Go(func() {
			members[i], errs[i] = harness.StartSingle(ctx, harness.Config{
				Binary: bin, Dir: filepath.Join(dir, string(rune('a'+i))),
				AdvertiseClientURL: "http://127.0.0.1:2379", AdvertisePeerURL: "http://127.0.0.1:2380",
				Args: append([]string{"--log-level=error"}, args...),
			})
		})
	}
	wg.Wait()
	for i, m := range members {
		if errs[i] != nil {
			t.Fatalf("server %c: %v", 'a'+i, errs[i])
		}
		t.Cleanup(func() { _ = m.Kill() })
	}
	return members
}

// caller sends requests to one server and remembers the token it received.
type caller struct {
	base, token string
	web         *http.Client
}

func newCaller(m *harness.Member) *caller {
	return &caller{base: m.ClientURL(), web: &http.Client{
		Timeout: limit, Transport: &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (c *caller) do(ctx context.Context, r request) (*http.Response, error) {
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+r.path, strings.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	for kv := range slices.Chunk(r.headers, 2) {
		v := strings.ReplaceAll(kv[1], "TOKEN", c.token)
		if kv[0] == "Host" {
			req.Host = v
			continue
		}
		req.Header.Set(kv[0], v)
	}
	return c.web.Do(req)
}

func (c *caller) answer(ctx context.Context, r request) (string, error) {
	resp, err := c.do(ctx, r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var given struct{ Token string }
	if json.Unmarshal(body, &given) == nil && given.Token != "" {
		c.token = given.Token
	}
	var lines strings.Builder // a stream has a line per message
	for line := range strings.Lines(string(body)) {
		lines.WriteString(normalise([]byte(line)))
	}
	return describe(resp, lines.String()), nil
}

// compare sends a request to both servers and reports answers that differ.
func compare(t *testing.T, what string, ask func(i int) (string, error)) {
	t.Helper()
	var got [2]string
	var errs [2]error
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], errs[i] = ask(i) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("%s: server %c: %v", what, 'a'+i, err)
		}
	}
	if got[0] != got[1] {
		t.Errorf("%s:\ngot  %s\nwant %s", what, got[1], got[0])
	}
}

func compareAll(t *testing.T, callers [2]*caller, requests []request) {
	t.Helper()
	for _, r := range requests {
		compare(t, fmt.Sprintf("%s %s %.200s %q", r.method, r.path, r.body, r.headers), func(i int) (string, error) {
			return callers[i].answer(t.Context(), r)
		})
	}
}

func callersOf(members [2]*harness.Member) [2]*caller {
	return [2]*caller{newCaller(members[0]), newCaller(members[1])}
}

func TestUnary(t *testing.T) {
	t.Parallel()
	members := pair(t)
	callers := callersOf(members)
	for _, s := range []struct {
		name     string
		requests []request
	}{{"leases", leases}, {"kv", kv}, {"locks", locks}, {"admin", admin}, {"malformed", malformed}, {"auth", auth}} {
		if slices.Contains(strings.Split(*skip, ","), s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) { compareAll(t, callers, s.requests) })
	}
}

// stream is a streaming request whose response is read line by line. Its body is complete: an HTTP/1 server
// answers when it has all of it.
type stream struct {
	resp  *http.Response
	lines *bufio.Reader
}

func openStream(ctx context.Context, c *caller, path, body string) (*stream, error) {
	resp, err := c.do(ctx, request{path: path, body: body})
	if err != nil {
		return nil, err
	}
	return &stream{resp, bufio.NewReader(resp.Body)}, nil
}

func (s *stream) next() (string, error) {
	line, err := s.lines.ReadString('\n')
	return normalise([]byte(line)), err
}

// steps drive a stream: a separate request, or the next line of its response.
type step struct {
	other *request
	lines int
}

var watchSteps = []step{
	{lines: 1},
	{other: &request{path: "/v3/kv/put", body: encode(`{"key":"{{w}}","value":"{{1}}"}`)}},
	{lines: 1},
	{other: &request{path: "/v3/kv/put", body: encode(`{"key":"{{w}}","value":"{{2}}","lease":"0"}`)}},
	{lines: 1},
	{other: &request{path: "/v3/kv/deleterange", body: encode(`{"key":"{{w}}"}`)}},
	{lines: 1},
}

var streams = []struct {
	name, path, body string
	steps            []step
}{
	{"watch", "/v3/watch", encode(`{"create_request":{"key":"{{w}}","prev_kv":true}}`), watchSteps},
	{"watch history", "/v3/watch", encode(`{"createRequest":{"key":"{{w}}","startRevision":"2","watch_id":"5"}}`), []step{{lines: 2}}},
	{"watch empty range", "/v3/watch", encode(`{"create_request":{"key":"{{b}}","range_end":"{{a}}"}}`), []step{{lines: 1}}},
	{"observe", "/v3/election/observe", encode(`{"name":"{{o}}"}`), []step{
		{other: &request{path: "/v3/kv/put", body: encode(`{"key":"{{o/1}}","value":"{{x}}"}`)}},
		{lines: 1},
	}},
	{"snapshot", "/v3/maintenance/snapshot", `{}`, []step{{lines: 1}}},
	{"keepalive", "/v3/lease/keepalive", `{"ID":"404"}`, []step{{lines: 1}}},
}

// play runs the steps. The headers come with the first line, and are compared then.
func play(ctx context.Context, c *caller, path, body string, steps []step) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out strings.Builder
	type opened struct {
		s   *stream
		err error
	}
	answers := make(chan opened, 1)
	go func() {
		s, err := openStream(ctx, c, path, body)
		answers <- opened{s, err}
	}()
	var s *stream
	for _, st := range steps {
		if st.other != nil {
			if _, err := c.answer(ctx, *st.other); err != nil {
				return "", err
			}
		}
		for range st.lines {
			if s == nil {
				o := <-answers
				if o.err != nil {
					return "", o.err
				}
				s = o.s
				defer s.resp.Body.Close()
				out.WriteString(describe(s.resp, ""))
			}
			line, err := s.next()
			fmt.Fprintf(&out, "%s%v\n", line, err)
		}
	}
	return out.String(), nil
}

func TestStreams(t *testing.T) {
	t.Parallel()
	callers := callersOf(pair(t))
	for _, s := range streams {
		compare(t, s.name, func(i int) (string, error) { return play(t.Context(), callers[i], s.path, s.body, s.steps) })
	}
}

// socketCase is a conversation over one websocket.
type socketCase struct {
	name, path string
	protocol   []string
	messages   []string // sent at once
	answers    int      // messages read afterwards
	end        bool     // then the server closes
}

// Unary calls do not work over websockets: the gateway waits for the end of their body, and a socket that closes
// loses the answer.
var socketCases = []socketCase{
	{name: "watch", path: "/v3/watch", messages: []string{encode(`{"create_request":{"key":"{{s}}"}}`)},
		answers: 1},
	{name: "two watchers", path: "/v3/watch", messages: []string{encode(`{"create_request":{"key":"{{s}}","watch_id":"3"}}`), encode(`{"create_request":{"key":"{{s}}","watch_id":"4"}}`)},
		answers: 2},
	{name: "cancel", path: "/v3/watch", messages: []string{encode(`{"create_request":{"key":"{{s}}"}}`), `{"cancel_request":{"watch_id":"0"}}`}, answers: 2},
	{name: "unknown path", path: "/v3/nothing", messages: []string{`{}`}, answers: 1, end: true},
	{name: "keepalive", path: "/v3/lease/keepalive", messages: []string{`{"ID":"404"}`, `{"ID":"404"}`}, answers: 2},
}

func converse(m *harness.Member, c socketCase) (string, error) {
	cfg, err := websocket.NewConfig("ws://"+m.ClientAddr()+c.path, "http://web.example")
	if err != nil {
		return "", err
	}
	cfg.Protocol = c.protocol
	ws, err := cfg.DialContext(context.Background())
	if err != nil {
		return fmt.Sprintf("refused: %v", err), nil
	}
	defer ws.Close()
	if err := ws.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	for _, msg := range c.messages {
		if err := websocket.Message.Send(ws, msg); err != nil {
			return "", err
		}
	}
	var out strings.Builder
	for range c.answers {
		var line string
		if err := websocket.Message.Receive(ws, &line); err != nil {
			return "", fmt.Errorf("after %q: %w", out.String(), err)
		}
		fmt.Fprintf(&out, "%s\n", normalise([]byte(line)))
	}
	if c.end {
		var rest string
		err := websocket.Message.Receive(ws, &rest)
		if errors.Is(err, syscall.ECONNRESET) {
			err = io.EOF // whether bytes we sent were in flight when the other side closed is chance
		}
		fmt.Fprintf(&out, "end: %v %q\n", err, rest)
	}
	return out.String(), nil
}

func TestWebsockets(t *testing.T) {
	t.Parallel()
	members := pair(t)
	for _, c := range socketCases {
		compare(t, c.name, func(i int) (string, error) {
			for {
				got, err := converse(members[i], c)
				// A server that closes while bytes we sent are unread may lose its answer that way.
				if c.end && errors.Is(err, syscall.ECONNRESET) {
					continue
				}
				return got, err
			}
		})
	}
}

// TestDisabled compares the paths of a server without a gateway.
func TestDisabled(t *testing.T) {
	t.Parallel()
	compareAll(t, callersOf(pair(t, "--enable-grpc-gateway=false")), []request{
		{path: "/v3/kv/range", body: `{}`}, {method: "GET", path: "/v3/"}, {method: "OPTIONS", path: "/v3/kv/range"}, {path: "/v3beta/kv/range", body: `{}`},
	})
}

// TestAccess compares which origins and hosts are allowed.
func TestAccess(t *testing.T) {
	t.Parallel()
	callers := callersOf(pair(t, "--cors=http://web.example:80,http://other.example:8080", "--host-whitelist=good.example,127.0.0.1"))
	var requests []request
	for _, path := range []string{"/v3/kv/range", "/v3beta/kv/range", "/v3/nothing", "/health"} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			for _, h := range [][]string{
				nil,
				{"Origin", "http://web.example:80"},
				{"Origin", "http://other.example:8080"},
				{"Origin", "http://other.example"},
				{"Origin", "null"},
				{"Host", "good.example"},
				{"Host", "good.example:2379"},
			} {
				requests = append(requests, request{method: method, path: path, body: `{"key":"YQ=="}`, headers: h})
			}
		}
	}
	compareAll(t, callers, requests)
	// The page for a rejected host has our own wording: only status and headers are compared.
	for _, r := range []request{
		{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Host", "evil.example"}},
		{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Host", "GOOD.example"}},
		{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Host", "evil.example", "Origin", "http://web.example:80"}},
		{method: "OPTIONS", path: "/v3/kv/range", headers: []string{"Host", "good.example.evil.example"}},
		{method: "GET", path: "/health", headers: []string{"Host", "evil.example:2379"}},
		{method: "GET", path: "/health", headers: []string{"Host", ""}},
	} {
		compare(t, fmt.Sprintf("%s %s %q", r.method, r.path, r.headers), func(i int) (string, error) {
			resp, err := callers[i].do(t.Context(), r)
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			return describe(resp, ""), nil
		})
	}
}
