package v2http

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// vector is a request that was recorded at etcd 3.4 and replayed to 3.5, with the possible
// outcomes.
type vector struct {
	Name, Method, Path, Query string
	Form                      map[string]string
	RawBody                   string            `json:"raw_body"`
	ContentType               string            `json:"content_type"`
	ReqHeaders                map[string]string `json:"req_headers"`
	Auth                      string
	SleepBefore               int `json:"sleep_before_ms"`
	Repeat                    int
	Background                bool
	CompletesAfter            string `json:"completes_after"`
	StreamEvents              int    `json:"stream_events"`
	outcome
	Alt []json.RawMessage // each replaces fields of the outcome
}

// outcome is the expected answer. Objects have exactly the keys given; {"$re": …} and the
// like match values that vary.
type outcome struct {
	Status        int
	Headers       map[string]any
	AbsentHeaders []string `json:"absent_headers"`
	BodyKind      string   `json:"body_kind"`
	Body          any
	BodyText      *string `json:"body_text"`
}

// fill replaces {{i:7}} by 7, {{k:7}} by the name of a key that is created at index 7,
// {{n}} by the number of a repetition.
func fill(s string, n int) string {
	s = regexp.MustCompile(`\{\{i:(\d+)\}\}`).ReplaceAllString(s, "$1")
	s = regexp.MustCompile(`\{\{k:(\d+)\}\}`).ReplaceAllStringFunc(s, func(m string) string {
		return fmt.Sprintf("%020s", m[4:len(m)-2])
	})
	return strings.ReplaceAll(s, "{{n}}", fmt.Sprint(n))
}

func (v *vector) request(t *testing.T, base string, n int) *http.Request {
	t.Helper()
	target := base + fill(v.Path, n)
	if v.Query != "" {
		target += "?" + fill(v.Query, n)
	}
	body, kind := fill(v.RawBody, n), v.ContentType
	if v.Form != nil {
		form := url.Values{}
		for k, x := range v.Form {
			form.Set(k, fill(x, n))
		}
		body = form.Encode()
	}
	if kind == "" {
		kind = "application/x-www-form-urlencoded"
	}
	req, err := http.NewRequestWithContext(t.Context(), v.Method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if v.Form != nil || v.RawBody != "" {
		req.Header.Set("Content-Type", kind)
	}
	for k, x := range v.ReqHeaders {
		req.Header.Set(k, x)
	}
	if user, password, ok := strings.Cut(v.Auth, ":"); ok {
		req.SetBasicAuth(user, password)
	}
	return req
}

// answer is the actual answer.
type answer struct {
	status  int
	headers http.Header
	body    string
}

// check compares the answer with the outcome, or with one of the alternatives, and returns
// the difference.
func (v *vector) check(t *testing.T, a answer) []string {
	t.Helper()
	wrong := v.outcome.differs(v, a)
	for _, alt := range v.Alt {
		if len(wrong) == 0 {
			break
		}
		o := v.outcome
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(alt, &fields); err != nil {
			t.Fatal(err)
		}
		if _, ok := fields["headers"]; ok {
			o.Headers = nil // is replaced as a whole
		}
		if _, ok := fields["body"]; ok {
			o.Body, o.BodyText = nil, nil
		}
		if err := json.Unmarshal(alt, &o); err != nil {
			t.Fatal(err)
		}
		if len(o.differs(v, a)) == 0 {
			return nil
		}
	}
	return wrong
}

func (o *outcome) differs(v *vector, a answer) (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if a.status != o.Status {
		bad("status %d, want %d", a.status, o.Status)
	}
	for _, k := range slices.Sorted(maps.Keys(o.Headers)) {
		if got := a.headers.Get(k); !match(o.Headers[k], got) {
			bad("header %s: %q, want %v", k, got, o.Headers[k])
		}
	}
	for _, k := range o.AbsentHeaders {
		if a.headers.Get(k) != "" {
			bad("header %s is there: %q", k, a.headers.Get(k))
		}
	}
	if o.BodyText != nil && a.body != *o.BodyText {
		bad("body %q\nwant %q", a.body, *o.BodyText)
	}
	var got any
	switch o.BodyKind {
	case "text":
		got = a.body
	case "json":
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			bad("body %q: %v", a.body, err)
		}
		if object, ok := got.(map[string]any); ok && v.Path == "/version" {
			delete(object, "storage") // fields that 3.5 does not have
			delete(object, "quorate")
		}
	case "json-lines":
		list := []any{}
		for line := range strings.Lines(a.body) {
			var x any
			if err := json.Unmarshal([]byte(line), &x); err != nil {
				bad("line %q: %v", line, err)
			}
			list = append(list, x)
		}
		got = list
	}
	if !match(o.Body, got) {
		bad("body %s\nwant %v", a.body, o.Body)
	}
	return wrong
}

// match compares got with a pattern.
func match(want, got any) bool {
	switch w := want.(type) {
	case string:
		return got == fill(w, 0)
	case []any:
		g, ok := got.([]any)
		return ok && slices.EqualFunc(w, g, match)
	case map[string]any:
		if re, ok := w["$re"].(string); ok {
			s, isText := got.(string)
			return isText && regexp.MustCompile(re).MatchString(s)
		}
		if bounds, ok := w["$range"].([]any); ok {
			n, isNumber := got.(float64)
			return isNumber && bounds[0].(float64) <= n && n <= bounds[1].(float64)
		}
		if w["$number"] == true {
			_, isNumber := got.(float64)
			return isNumber
		}
		if w["$any"] == true {
			return true
		}
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(w) {
			return false
		}
		for k, x := range w {
			if y, there := g[k]; !there || !match(x, y) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(want, got)
}

// Every recorded request gets the recorded answer.
func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/v2-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 166 {
		t.Fatalf("%d vectors", len(vectors))
	}
	m := newNode(t)
	s := httptest.NewServer(m.handler(Options{}))
	defer s.Close()
	web := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	type watch struct {
		v    *vector
		resp *http.Response
	}
	waiting := map[string][]watch{}
	report := func(v *vector, a answer) {
		for _, w := range v.check(t, a) {
			t.Errorf("%s: %s %s?%s: %s", v.Name, v.Method, v.Path, v.Query, w)
		}
	}
	for i := range vectors {
		v := &vectors[i]
		if v.SleepBefore > 0 {
			m.sleep(time.Duration(v.SleepBefore) * time.Millisecond)
		}
		var resp *http.Response
		for n := range max(1, v.Repeat) {
			if resp != nil {
				resp.Body.Close()
			}
			if resp, err = web.Do(v.request(t, s.URL, n)); err != nil {
				t.Fatalf("%s: %v", v.Name, err)
			}
		}
		if v.Background {
			waiting[v.CompletesAfter] = append(waiting[v.CompletesAfter], watch{v, resp})
			continue
		}
		report(v, answer{resp.StatusCode, resp.Header, rest(t, resp.Body)})
		resp.Body.Close()
		for _, w := range waiting[v.Name] {
			body := ""
			if w.v.StreamEvents > 0 {
				r := bufio.NewReader(w.resp.Body)
				for range w.v.StreamEvents {
					line, err := r.ReadString('\n')
					if err != nil {
						t.Fatalf("%s: %v", w.v.Name, err)
					}
					body += line
				}
			} else {
				b, err := io.ReadAll(w.resp.Body)
				if err != nil {
					t.Fatalf("%s: %v", w.v.Name, err)
				}
				body = string(b)
			}
			w.resp.Body.Close()
			report(w.v, answer{w.resp.StatusCode, w.resp.Header, body})
		}
		delete(waiting, v.Name)
	}
	if len(waiting) > 0 {
		t.Errorf("never completed: %v", waiting)
	}
}
