package v2

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// The lane's binaries, relative to this folder: what the make target builds.
var (
	flagA   = flag.String("a", "../bin/etcd35", "reference server binary")
	flagB   = flag.String("b", "../../bin/etcd", "server binary under test")
	flagCtl = flag.String("ctl", "../bin/etcdctl35", "etcdctl that knows ETCDCTL_API=2")
)

const limit = 60 * time.Second // for every wait on a server

// flags of every server: the version of the cluster is decided at once, so the index of the store does not
// change after clients connect.
var flags = []string{"--enable-v2", "--log-level=error"}

// pair starts one member of each binary. Both advertise the same URLs, so their ids are equal.
func pair(t *testing.T) [2]*server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	var out [2]*server
	both(t, "start", func(i int) (string, error) {
		m, err := harness.StartSingle(ctx, harness.Config{
			Binary: [2]string{*flagA, *flagB}[i], Dir: filepath.Join(dir, string(rune('a'+i))),
			AdvertiseClientURL: "http://127.0.0.1:2379", AdvertisePeerURL: "http://127.0.0.1:2380", Args: flags,
		})
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { _ = m.Kill() })
		out[i] = &server{base: m.ClientURL(), web: web()}
		return "", out[i].settle(ctx, 3)
	})
	return out
}

// server is one member as clients see it.
type server struct {
	base string
	web  *http.Client
	// names are pairs of names that differ between the two sides, and their common replacement.
	names []string
}

// replace substitutes the common names.
func (s *server) replace(text string) string { return strings.NewReplacer(s.names...).Replace(text) }

// restore substitutes the names of this side.
func (s *server) restore(text string) string {
	back := slices.Clone(s.names)
	slices.Reverse(back)
	return strings.NewReplacer(back...).Replace(text)
}

func web() *http.Client {
	return &http.Client{Timeout: limit, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// settle waits until the store has the index of a newly founded cluster.
func (s *server) settle(ctx context.Context, index int) error {
	for {
		resp, err := s.do(ctx, call{method: "GET", target: "/v2/keys"})
		got := ""
		if err == nil {
			got = resp.Header.Get("X-Etcd-Index")
			resp.Body.Close()
		}
		if got == strconv.Itoa(index) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the index of the store is %q, not %d (%v)", got, index, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *server) do(ctx context.Context, c call) (*http.Response, error) {
	target, body, kind := c.target, c.body, "application/x-www-form-urlencoded"
	if rest, ok := strings.CutPrefix(body, "@"); ok {
		kind, body, _ = strings.Cut(rest, " ")
	}
	target, body = s.restore(target), s.restore(body)
	req, err := http.NewRequestWithContext(ctx, c.method, s.base+target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.body != "" {
		req.Header.Set("Content-Type", kind)
	}
	if name, password, ok := strings.Cut(c.user, ":"); ok {
		req.SetBasicAuth(name, password)
	} else if c.user != "" {
		req.Header.Set("Authorization", c.user)
	}
	return s.web.Do(req)
}

func (s *server) answer(ctx context.Context, c call) (string, error) {
	resp, err := s.do(ctx, c)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if c.target == "/v2/machines" { // the order is that of the URLs, which have no common order
		urls := strings.Split(string(body), ", ")
		if !slices.IsSorted(urls) {
			return "", fmt.Errorf("not sorted: %q", urls)
		}
		text := strings.Split(s.replace(string(body)), ", ")
		slices.Sort(text)
		body = []byte(strings.Join(text, ", "))
	}
	return s.replace(describe(c.target, resp, string(body))), nil
}

// both asks both sides at the same time and returns their answer, which must be equal.
func both(t *testing.T, what string, ask func(i int) (string, error)) string {
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
	return got[0]
}

func compare(t *testing.T, servers [2]*server, calls []call) {
	t.Helper()
	for _, c := range calls {
		both(t, fmt.Sprintf("%s %s %q %s", c.method, c.target, c.user, c.body), func(i int) (string, error) {
			return servers[i].answer(t.Context(), c)
		})
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	compare(t, pair(t), keys)
}

func TestAuth(t *testing.T) {
	t.Parallel()
	compare(t, pair(t), auth)
}

// open opens a watch. It returns when the headers have arrived.
func (s *server) open(ctx context.Context, target string) (*http.Response, error) {
	return s.do(ctx, call{method: "GET", target: target})
}

func events(resp *http.Response, n int) (string, error) {
	r := bufio.NewReader(resp.Body)
	var out strings.Builder
	for range n {
		line, err := r.ReadString('\n')
		if err != nil {
			return out.String(), err
		}
		out.WriteString(line)
	}
	return out.String(), nil
}

func TestWatches(t *testing.T) {
	t.Parallel()
	servers := pair(t)
	open := make([][2]*http.Response, len(watches))
	for n, w := range watches {
		both(t, w.target, func(i int) (string, error) {
			resp, err := servers[i].open(t.Context(), w.target)
			if err != nil {
				return "", err
			}
			open[n][i] = resp
			return describe(w.target, resp, ""), nil
		})
	}
	compare(t, servers, watched)
	for n, w := range watches {
		both(t, w.target, func(i int) (string, error) {
			defer open[n][i].Body.Close()
			text, err := events(open[n][i], w.events)
			return normalise(w.target, text), err
		})
	}
	compare(t, servers, past)
}

// vector is one of the recorded requests; the recorded answer is not used here.
type vector struct {
	Name, Section, Method, Path, Query string
	Form                               map[string]string
	RawBody                            string `json:"raw_body"`
	ContentType                        string `json:"content_type"`
	Auth                               string
	SleepBefore                        int `json:"sleep_before_ms"`
	Repeat                             int
	Background                         bool
	CompletesAfter                     string `json:"completes_after"`
	StreamEvents                       int    `json:"stream_events"`
}

// left are recorded requests that are answered differently on purpose, and why.
var left = map[string]string{
	"dir-ttl-update": "etcd 3.5 refuses an update of a directory, etcd before and this server do not",
	"cors":           "/version has more fields",
	"version":        "/version has more fields",
}

func (v vector) call(n int) call {
	fill := func(s string) string {
		s = regexp.MustCompile(`\{\{i:(\d+)\}\}`).ReplaceAllString(s, "$1")
		s = regexp.MustCompile(`\{\{k:(\d+)\}\}`).ReplaceAllStringFunc(s, func(m string) string { return fmt.Sprintf("%020s", m[4:len(m)-2]) })
		return strings.ReplaceAll(s, "{{n}}", strconv.Itoa(n))
	}
	c := call{method: v.Method, target: fill(v.Path), user: v.Auth}
	if v.Query != "" {
		c.target += "?" + fill(v.Query)
	}
	if v.ContentType != "" {
		c.body = "@" + v.ContentType + " " + fill(v.RawBody)
	} else {
		form := url.Values{}
		for k, x := range v.Form {
			form.Set(k, fill(x))
		}
		c.body = form.Encode() + fill(v.RawBody)
	}
	return c
}

func TestRecorded(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../internal/legacy/v2http/testdata/v2-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	servers := pair(t)
	type watch struct {
		v    vector
		open [2]*http.Response
	}
	waiting := map[string][]watch{}
	complete := func(name string) {
		for _, w := range waiting[name] {
			both(t, w.v.Name, func(i int) (string, error) {
				defer w.open[i].Body.Close()
				text, err := events(w.open[i], max(1, w.v.StreamEvents))
				return normalise(w.v.Path, text), err
			})
		}
		delete(waiting, name)
	}
	played := 0
	for _, v := range vectors {
		if left[v.Section] != "" || left[v.Name] != "" {
			continue
		}
		played++
		if v.SleepBefore > 0 {
			// The recording paused here until a key had expired: a watch signals that.
			if len(waiting[v.Name]) == 0 {
				t.Fatalf("%s: nothing tells when it is due", v.Name)
			}
			complete(v.Name)
		}
		if v.Background {
			w := watch{v: v}
			both(t, v.Name, func(i int) (string, error) {
				resp, err := servers[i].open(t.Context(), v.call(0).target)
				if err != nil {
					return "", err
				}
				w.open[i] = resp
				return describe(v.Path, resp, ""), nil
			})
			waiting[v.CompletesAfter] = append(waiting[v.CompletesAfter], w)
			continue
		}
		both(t, v.Name, func(i int) (text string, err error) {
			for n := range max(1, v.Repeat) {
				if text, err = servers[i].answer(t.Context(), v.call(n)); err != nil {
					break
				}
			}
			return text, err
		})
		complete(v.Name)
	}
	if played < 155 || len(waiting) > 0 {
		t.Errorf("%d requests were played; never completed: %v", played, waiting)
	}
}

// trio starts three members of one binary; the names of URLs and ids are made equal to those of another trio.
func trio(t *testing.T, binary string) []*server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := harness.StartCluster(ctx, t.TempDir(), []string{binary, binary, binary}, append([]string{"--strict-reconfig-check=false"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	var list struct {
		Members []struct {
			ID, Name string
			PeerURLs []string
		}
	}
	first := &server{base: c.Members[0].ClientURL(), web: web()}
	if err := first.settle(ctx, 7); err != nil {
		t.Fatal(err)
	}
	resp, err := first.do(ctx, call{method: "GET", target: "/v2/members"})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list.Members) != 3 {
		t.Fatalf("members %+v, %v", list, err)
	}
	names := []string{resp.Header.Get("X-Etcd-Cluster-Id"), "CLUSTER"}
	for i, m := range c.Members {
		j := slices.IndexFunc(list.Members, func(x struct {
			ID, Name string
			PeerURLs []string
		}) bool {
			return x.Name == m.Name()
		})
		if j < 0 {
			t.Fatalf("%s is not in %+v", m.Name(), list)
		}
		names = append(names, list.Members[j].ID, fmt.Sprint("ID", i), m.ClientURL(), fmt.Sprint("CLIENT", i), m.PeerURL(), fmt.Sprint("PEER", i))
	}
	var out []*server
	for _, m := range c.Members {
		s := &server{base: m.ClientURL(), web: web(), names: names}
		if err := s.settle(ctx, 7); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func TestMembers(t *testing.T) {
	t.Parallel()
	var sides [2][]*server
	var wg sync.WaitGroup
	for i, binary := range []string{*flagA, *flagB} {
		wg.Go(func() { sides[i] = trio(t, binary) })
	}
	wg.Wait()
	if sides[0] == nil || sides[1] == nil {
		t.FailNow()
	}
	for _, c := range members {
		both(t, fmt.Sprintf("%s %s %s", c.method, c.target, c.body), func(i int) (string, error) {
			text, err := sides[i][0].answer(t.Context(), c)
			if added := regexp.MustCompile(`^201\n(?s:.*)"id":"([0-9a-f]+)","name":"",`).FindStringSubmatch(text); added != nil {
				for _, s := range sides[i] { // its id contains the time of the request
					s.names = append(slices.Clip(s.names), added[1], "ADDED")
				}
				text = sides[i][0].replace(text)
			}
			return text, err
		})
	}
	for i, side := range sides {
		if !slices.Contains(side[0].names, "ADDED") {
			t.Errorf("server %c: no member was added", 'a'+i)
		}
	}
	// Which member leads is chance, so each side is asked at its leader, and at one that does not lead.
	for _, target := range []string{"/v2/members/leader", "/v2/stats/leader", "/v2/stats/self"} {
		both(t, target, func(i int) (string, error) { return leaders(t, sides[i], target) })
	}
}

// leaders asks all members, and returns the answers of the leader and of one other.
func leaders(t *testing.T, side []*server, target string) (string, error) {
	resp, err := side[0].do(t.Context(), call{method: "GET", target: "/v2/members/leader"})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var leader struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&leader); err != nil {
		return "", err
	}
	id := regexp.MustCompile(`ID[0-2]`)
	var out [2]string
	for n, s := range side {
		text, err := s.answer(t.Context(), call{method: "GET", target: target})
		if err != nil {
			return "", err
		}
		k := 1
		if s.replace(leader.ID) == fmt.Sprint("ID", n) {
			k = 0
		}
		text = strings.ReplaceAll(text, s.replace(leader.ID), "LEADER")
		out[k] = regexp.MustCompile(`(m|CLIENT|PEER)[0-2]`).ReplaceAllString(id.ReplaceAllString(text, "OTHER"), "$1")
	}
	return out[0] + "\n" + out[1], nil
}

// etcdctl of 3.5 prints the same, whichever server answers.
func TestEtcdctl(t *testing.T) {
	t.Parallel()
	servers := pair(t)
	for _, args := range ctl {
		both(t, args, func(i int) (string, error) {
			words := append([]string{"ETCDCTL_API=2", *flagCtl, "--no-sync", "--timeout", "60s", "--total-timeout", "60s", "--endpoints", servers[i].base}, strings.Fields(args)...)
			out, err := child.Run(limit, "env", words...)
			out = strings.ReplaceAll(out, servers[i].base, "http://SERVER")
			return fmt.Sprintf("%s%v", normalise("", out), err), nil
		})
	}
}
