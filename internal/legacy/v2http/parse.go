package v2http

import (
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
)

// keysRoot is the directory of the clients' keys in the tree.
const keysRoot = "/1"

// operation is a decoded request on keys.
type operation struct {
	req     v2request.Request
	wait    bool // watch
	noValue bool // the client does not want to see what was written
	method  string
	// checked is the key that patterns of roles are compared with: as the client wrote it,
	// so /a/ differs from /a, but without elements like "..".
	checked string
}

// parseKeys validates a request on keys in etcd's order: the client gets to see the first
// mistake.
func parseKeys(r *http.Request, now func() time.Time) (*operation, *v2store.Error) {
	if err := r.ParseForm(); err != nil { // reads up to 10 MiB of a body
		return nil, v2store.NewError(v2store.CodeInvalidForm, err.Error(), 0)
	}
	f := fields{form: r.Form}
	o := &operation{method: r.Method}
	q := &o.req
	key, checked := keyOf(r.URL.Path)
	q.Method, q.Path, o.checked = r.Method, path.Join(keysRoot, key), checked
	q.PrevIndex = f.index("prevIndex")
	q.Since = f.index("waitIndex")
	q.Recursive = f.flag("recursive")
	q.Sorted = f.flag("sorted")
	q.Wait = f.flag("wait")
	q.Dir = f.flag("dir")
	q.Quorum = f.flag("quorum")
	q.Stream = f.flag("stream")
	if q.Wait && r.Method != http.MethodGet {
		f.fail(v2store.CodeInvalidField, `"wait" can only be used with GET requests`)
	}
	q.PrevValue = f.form.Get("prevValue")
	if f.form.Has("prevValue") && q.PrevValue == "" {
		f.fail(v2store.CodePrevValueRequired, `"prevValue" cannot be empty`)
	}
	o.noValue = f.flag("noValueOnSuccess")
	ttl, limited := f.ttl()
	q.PrevExist = f.choice("prevExist")
	q.Refresh = f.choice("refresh")
	q.Val = f.form.Get("value")
	if q.Refresh != nil && *q.Refresh {
		if q.Val != "" {
			f.fail(v2store.CodeRefreshValue, "A value was provided on a refresh")
		}
		if !limited {
			f.fail(v2store.CodeRefreshTTLRequired, "No TTL value set")
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	if limited {
		// Above 292 years this overflows, in etcd too; the store handles it.
		q.Expiration = now().Add(time.Duration(ttl) * time.Second).UnixNano()
	}
	switch {
	case q.Method == http.MethodHead: // never becomes a quorum read
		q.Method, q.Quorum = http.MethodGet, false
	case q.Method == http.MethodGet && q.Quorum:
		q.Method = "QGET"
	case q.Method == http.MethodGet:
		o.wait = q.Wait
	}
	return o, nil
}

// keyOf returns the key of a path, which begins with a slash and is clean, and the key as
// roles see it. ServeMux redirects to clean paths, but it only sees what is not
// percent-encoded.
func keyOf(urlPath string) (key, checked string) {
	rest := strings.TrimPrefix(urlPath, keysPath)
	key = path.Join("/", rest)
	switch {
	case rest == "":
		return key, "" // no pattern but * covers it, as in etcd
	case strings.HasSuffix(rest, "/") && key != "/":
		return key, key + "/"
	}
	return key, key
}

// label returns the method's label in the metrics.
func (o *operation) label() string {
	if o.method == http.MethodGet && o.req.Quorum {
		return "QGET"
	}
	return o.method
}

// fields reads a form and records the first mistake.
type fields struct {
	form url.Values
	err  *v2store.Error
}

func (f *fields) fail(code int, cause string) {
	if f.err == nil {
		f.err = v2store.NewError(code, cause, 0)
	}
}

// index parses a number; if absent it is 0.
func (f *fields) index(name string) uint64 {
	if !f.form.Has(name) {
		return 0
	}
	n, err := strconv.ParseUint(f.form.Get(name), 10, 64)
	if err != nil {
		f.fail(v2store.CodeIndexNotANumber, `invalid value for "`+name+`"`)
	}
	return n
}

// flag is false if absent, and a mistake if present and empty.
func (f *fields) flag(name string) bool {
	if !f.form.Has(name) {
		return false
	}
	v, err := strconv.ParseBool(f.form.Get(name))
	if err != nil {
		f.fail(v2store.CodeInvalidField, `invalid value for "`+name+`"`)
	}
	return v
}

// choice is a flag that may be absent. Its error has no quotes.
func (f *fields) choice(name string) *bool {
	if !f.form.Has(name) {
		return nil
	}
	v, err := strconv.ParseBool(f.form.Get(name))
	if err != nil {
		f.fail(v2store.CodeInvalidField, "invalid value for "+name)
	}
	return &v
}

// ttl is in seconds; an empty one is none.
func (f *fields) ttl() (seconds uint64, given bool) {
	text := f.form.Get("ttl")
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		f.fail(v2store.CodeTTLNotANumber, `invalid value for "ttl"`)
	}
	return n, true
}
