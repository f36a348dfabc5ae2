package v2http

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
)

// Of several mistakes the first in etcd's order is reported: each line has all the mistakes
// of the lines below it as well.
func TestOrderOfValidation(t *testing.T) {
	h := newNode(t).handler(Options{})
	mistakes := []struct{ params, want string }{
		{"%zz=1", `210 Invalid POST form: invalid URL escape "%zz"`},
		{"prevIndex=-1", `203 The given index in POST form is not a number: invalid value for "prevIndex"`},
		{"waitIndex=x", `203 The given index in POST form is not a number: invalid value for "waitIndex"`},
		{"recursive=", `209 Invalid field: invalid value for "recursive"`},
		{"sorted=yes", `209 Invalid field: invalid value for "sorted"`},
		{"wait=2", `209 Invalid field: invalid value for "wait"`},
		{"dir=tRUE", `209 Invalid field: invalid value for "dir"`},
		{"quorum=", `209 Invalid field: invalid value for "quorum"`},
		{"stream=x", `209 Invalid field: invalid value for "stream"`},
		{"wait=T", `209 Invalid field: "wait" can only be used with GET requests`},
		{"prevValue=", `201 PrevValue is Required in POST form: "prevValue" cannot be empty`},
		{"noValueOnSuccess=", `209 Invalid field: invalid value for "noValueOnSuccess"`},
		{"ttl=1.5", `202 The given TTL in POST form is not a number: invalid value for "ttl"`},
		{"prevExist=", `209 Invalid field: invalid value for prevExist`},
		{"refresh=x", `209 Invalid field: invalid value for refresh`},
		{"refresh=1&value=v", `211 Value provided on refresh: A value was provided on a refresh`},
		{"refresh=1", `212 A TTL must be provided on refresh: No TTL value set`},
	}
	for i, m := range mistakes {
		params := []string{m.params}
		for _, later := range mistakes[i+1:] {
			// A field has one value, the first; an earlier line has precedence.
			for _, p := range strings.Split(later.params, "&") {
				name, _, _ := strings.Cut(p, "=")
				if !slices.ContainsFunc(params, func(q string) bool {
					return slices.ContainsFunc(strings.Split(q, "&"), func(r string) bool { return strings.HasPrefix(r, name+"=") })
				}) {
					params = append(params, p)
				}
			}
		}
		var code int
		var message, cause string
		if _, err := fmt.Sscanf(m.want, "%d", &code); err != nil {
			t.Fatal(err)
		}
		message, cause, _ = strings.Cut(m.want[4:], ": ")
		want := fmt.Sprintf(`400 {"errorCode":%d,"message":%q,"cause":%q,"index":0}`, code, message, cause)
		for _, target := range []string{"/v2/keys/k?" + strings.Join(params, "&"), "/v2/keys/k?" + m.params} {
			if got := ask(t, h, "PUT", target, "", ""); got != want {
				t.Errorf("PUT %s\ngot  %s\nwant %s", target, got, want)
			}
		}
	}
}

func parse(t testing.TB, method, target, kind, body string) (*operation, *v2store.Error) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return parseKeys(r, func() time.Time { return time.Unix(100, 1) })
}

const form = "application/x-www-form-urlencoded"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		method, target, kind, body string
		want                       v2request.Request
		wait, noValue              bool
		checked                    string
	}{
		{method: "GET", target: "/v2/keys", want: v2request.Request{Method: "GET", Path: "/1"}},
		{method: "GET", target: "/v2/keys/", want: v2request.Request{Method: "GET", Path: "/1"}, checked: "/"},
		{method: "GET", target: "/v2/keys/a/b/", want: v2request.Request{Method: "GET", Path: "/1/a/b"}, checked: "/a/b/"},
		{method: "GET", target: "/v2/keys/a%2Fb%20c+d", want: v2request.Request{Method: "GET", Path: "/1/a/b c+d"}, checked: "/a/b c+d"},
		{method: "GET", target: "/v2/keys/%2e%2e/%2e%2e/2/users/root", want: v2request.Request{Method: "GET", Path: "/1/2/users/root"}, checked: "/2/users/root"},
		{method: "GET", target: "/v2/keys/open/%2e%2e%2fshut", want: v2request.Request{Method: "GET", Path: "/1/shut"}, checked: "/shut"},
		{method: "GET", target: "/v2/keys/k?quorum=1&sorted=t&recursive=TRUE", want: v2request.Request{Method: "QGET", Path: "/1/k", Quorum: true, Sorted: true, Recursive: true}, checked: "/k"},
		{method: "GET", target: "/v2/keys/k?quorum=true&wait=true", want: v2request.Request{Method: "QGET", Path: "/1/k", Quorum: true, Wait: true}, checked: "/k"},
		{method: "HEAD", target: "/v2/keys/k?quorum=true", want: v2request.Request{Method: "GET", Path: "/1/k"}, checked: "/k"},
		{method: "GET", target: "/v2/keys/k?wait=true&stream=true&waitIndex=7", want: v2request.Request{Method: "GET", Path: "/1/k", Wait: true, Stream: true, Since: 7}, wait: true, checked: "/k"},
		{method: "PUT", target: "/v2/keys/k?value=q&ttl=", kind: form, body: "value=b&ttl=1&value=c", want: v2request.Request{Method: "PUT", Path: "/1/k", Val: "b", Expiration: 101_000_000_001}, checked: "/k"},
		{method: "PUT", target: "/v2/keys/k?ttl=", want: v2request.Request{Method: "PUT", Path: "/1/k"}, checked: "/k"},
		{method: "PUT", target: "/v2/keys/k", kind: "text/plain", body: "value=b", want: v2request.Request{Method: "PUT", Path: "/1/k"}, checked: "/k"},
		{method: "PUT", target: "/v2/keys/k?prevExist=false&refresh=0&noValueOnSuccess=1", want: v2request.Request{Method: "PUT", Path: "/1/k", PrevExist: new(false), Refresh: new(false)}, noValue: true, checked: "/k"},
		{method: "POST", target: "/v2/keys/q?dir=1&prevIndex=0", want: v2request.Request{Method: "POST", Path: "/1/q", Dir: true}, checked: "/q"},
		{method: "DELETE", target: "/v2/keys/k?prevIndex=18446744073709551615&prevValue=a", kind: form, body: "recursive=true",
			want: v2request.Request{Method: "DELETE", Path: "/1/k", PrevIndex: 1<<64 - 1, PrevValue: "a"}, checked: "/k"},
	} {
		o, refused := parse(t, tt.method, tt.target, tt.kind, tt.body)
		if refused != nil {
			t.Errorf("%s %s: %v", tt.method, tt.target, refused)
			continue
		}
		if !reflect.DeepEqual(o.req, tt.want) || o.wait != tt.wait || o.noValue != tt.noValue || o.checked != tt.checked {
			t.Errorf("%s %s:\ngot  %+v wait %v noValue %v checked %q\nwant %+v %v %v %q", tt.method, tt.target, o.req, o.wait, o.noValue, o.checked, tt.want, tt.wait, tt.noValue, tt.checked)
		}
	}
	if _, refused := parse(t, "PUT", "/v2/keys/k", form, "value="+strings.Repeat("x", maxBody)); refused == nil || refused.Cause != "http: POST too large" {
		t.Errorf("of a large body: %v", refused)
	}
}

// Any input is either rejected with one of etcd's codes, or is an operation below the keys
// of clients that survives encoding for the log.
func FuzzParse(f *testing.F) {
	f.Add("PUT", "/a", "prevExist=false&ttl=5", form, "value=x&refresh=true")
	f.Add("GET", "/%2e%2e/2/users", "wait=true&waitIndex=5&recursive=true", "", "")
	f.Add("DELETE", "//x/../..", "prevValue=a&prevIndex=3", "text/plain", "a=b")
	f.Add("HEAD", "", "quorum=1;2", form+"; =", "%zz")
	f.Add("POST", "/q", "ttl=18446744073709551615&dir=1", form, "prevExist=&sorted=T")
	f.Fuzz(func(t *testing.T, method, key, query, kind, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/keys", strings.NewReader(body))
		if !slices.Contains(keyMethods, method) {
			method = "PUT"
		}
		r.Method, r.URL.Path, r.URL.RawQuery = method, keysPath+key, query
		r.Header.Set("Content-Type", kind)
		o, refused := parseKeys(r, time.Now)
		if refused != nil {
			if refused.Code < 201 || refused.Code > 212 || refused.Message == "" || refused.Status() != 400 || refused.Index != 0 {
				t.Fatalf("refused with %+v", refused)
			}
			return
		}
		p := o.req.Path
		if p != keysRoot && !strings.HasPrefix(p, keysRoot+"/") || path.Clean(p) != p {
			t.Fatalf("path %q", p)
		}
		if o.checked != "" && keysRoot+o.checked != p && keysRoot+o.checked != p+"/" {
			t.Fatalf("%q is checked, %q is used", o.checked, p)
		}
		read, ok, err := v2request.Parse(o.req.Marshal())
		if !ok || err != nil || !reflect.DeepEqual(*read, o.req) {
			t.Fatalf("%+v is read as %+v, %v, %v", o.req, read, ok, err)
		}
	})
}
