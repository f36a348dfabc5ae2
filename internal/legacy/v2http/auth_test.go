package v2http

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

const (
	denied     = `401 {"errorCode":110,"message":"The request requires user authentication","cause":"Insufficient credentials","index":0}`
	deniedRoot = `401 {"message":"Insufficient credentials"}`
)

// line is a request and its answer; of a longer answer, want is the beginning.
type line struct{ method, target, user, body, want string }

func play(t *testing.T, h http.Handler, lines []line) {
	t.Helper()
	for _, l := range lines {
		got := ask(t, h, l.method, l.target, l.user, l.body)
		want, cut := strings.CutSuffix(l.want, "…")
		if got != want && !(cut && strings.HasPrefix(got, want)) {
			t.Errorf("%s %s %q %s\ngot  %s\nwant %s", l.method, l.target, l.user, l.body, got, l.want)
		}
	}
}

func TestUsersAndRoles(t *testing.T) {
	m := newNode(t)
	h := m.handler(Options{})
	const users, roles, u, r = "/v2/auth/users", "/v2/auth/roles", "/v2/auth/users/u", "/v2/auth/roles/r"
	long := strings.Repeat("x", 80)
	play(t, h, []line{
		{"GET", users, "", "", `200 {"users":null}`},
		{"GET", roles, "", "", `200 {"roles":[{"role":"root","permissions":{"kv":{"read":["/*"],"write":["/*"]}}}]}`},
		{"GET", "/v2/auth/enable", "", "", `200 {"enabled":false}`},
		{"DELETE", "/v2/auth/enable", "", "", `409 {"message":"auth: already disabled"}`},
		{"PUT", "/v2/auth/enable", "", "", `409 {"message":"auth: No root user available, please create one"}`},
		{"GET", "/v2/keys", "", "", `200 {"action":"get","node":{"dir":true}}`},

		{"PUT", u, "", `{"user":"u","grant":["r"]}`, `404 {"message":"auth: User u does not exist."}`},
		{"PUT", u, "", `{"user":"u"}`, `400 {"message":"auth: Cannot create user u with an empty password"}`},
		{"PUT", u, "", `{"user":"v","password":"p"}`, `400 {"message":"User JSON name does not match the name in the URL"}`},
		{"PUT", u, "", `[]`, `400 {"message":"Invalid JSON in request body."}`},
		{"PUT", u, "", ``, `400 {"message":"Invalid JSON in request body."}`},
		{"PUT", u, "", `{"user":"u","password":"` + long + `"}`, `500 {"message":"Internal Server Error"}`},
		{"PUT", u, "", `{"user":"u","password":"p"} what follows is not read`, `201 {"user":"u","roles":null}`},
		{"PUT", u, "", `{"user":"u"}`, `200 {"user":"u","roles":[]}`}, // null becomes a list, which is a change
		{"PUT", u, "", `{"user":"u"}`, `400 {"message":"auth: User not updated. Use grant/revoke/password to update the user."}`},
		{"PUT", u, "", `{"user":"u","password":"p2"}`, `200 {"user":"u","roles":[]}`},
		{"PUT", u, "", `{"user":"u","password":"p","roles":["a"]}`, `409 {"message":"auth: User u already exists."}`},
		{"PUT", u, "", `{"user":"u","roles":["a"],"grant":["b"]}`, `400 {"message":"User JSON contains both roles and grant/revoke"}`},
		{"PUT", u, "", `{"user":"u","grant":["r","b"]}`, `200 {"user":"u","roles":["b","r"]}`},
		{"PUT", u, "", `{"user":"u","grant":["b"]}`, `409 {"message":"auth: Granting duplicate role b for user u"}`},
		{"PUT", u, "", `{"user":"u","grant":["c","c"]}`, `409 {"message":"auth: Granting duplicate role c for user u"}`},
		{"PUT", u, "", `{"user":"u","revoke":["c"]}`, `409 {"message":"auth: Revoking ungranted role c for user u"}`},
		{"PUT", u, "", `{"user":"u","grant":["c"],"revoke":["c","b"]}`, `200 {"user":"u","roles":["r"]}`},
		{"GET", u, "", "", `404 {"message":"auth: Role r does not exist."}`},
		{"GET", users + "/", "", "", `200 {"users":[{"user":"u"}]}`},
		{"GET", users + "/w", "", "", `404 {"message":"auth: User w does not exist."}`},
		{"DELETE", users + "/w", "", "", `404 {"message":"auth: User w does not exist"}`},
		{"POST", u, "", "", `405 Method Not Allowed`},
		{"PUT", users, "", "", `405 Method Not Allowed`},
		{"HEAD", users, "", "", `405 Method Not Allowed`},
		{"GET", u + "/x", "", "", `400 {"message":"Invalid path"}`},

		{"PUT", r, "", `{"role":"q"}`, `400 {"message":"Role JSON name does not match the name in the URL"}`},
		{"PUT", r, "", `{"role":`, `400 {"message":"Invalid JSON in request body."}`},
		{"PUT", r, "", `{"role":"r","grant":{"kv":{"read":["/a"]}}}`, `404 {"message":"auth: Role r does not exist."}`},
		{"PUT", r, "", `{"role":"r","permissions":{"kv":{"write":["/b","/a"]}}}`, `201 {"role":"r","permissions":{"kv":{"read":null,"write":["/b","/a"]}}}`},
		{"PUT", r, "", `{"role":"r"}`, `409 {"message":"auth: Role r already exists."}`},
		{"PUT", r, "", `{"role":"r","permissions":{"kv":{"read":["/x"]}},"grant":{"kv":{"read":["/a"]}}}`, `400 {"message":"Role JSON contains both permissions and grant/revoke"}`},
		{"PUT", r, "", `{"role":"r","revoke":{"kv":{"read":["/x"]}}}`, `200 {"role":"r","permissions":{"kv":{"read":[],"write":["/a","/b"]}}}`}, // sorted, which is a change
		{"PUT", r, "", `{"role":"r","revoke":{"kv":{"read":["/x"]}}}`, `400 {"message":"auth: Role not updated. Use grant/revoke to update the role."}`},
		{"PUT", r, "", `{"role":"r","grant":{"kv":{"write":["/a"]}}}`, `409 {"message":"auth: Granting duplicate write permission /a"}`},
		{"PUT", r, "", `{"role":"r","grant":{"kv":{"read":["/a"]}},"revoke":{"kv":{"write":["/a"]}}}`, `200 {"role":"r","permissions":{"kv":{"read":["/a"],"write":["/b"]}}}`},
		{"PUT", r, "", `{"role":"r","grant":{"kv":{"read":["/a"]}}}`, `409 {"message":"auth: Granting duplicate read permission /a"}`},
		{"GET", r, "", "", `200 {"role":"r","permissions":{"kv":{"read":["/a"],"write":["/b"]}}}`},
		{"GET", u, "", "", `200 {"user":"u","roles":[{"role":"r","permissions":{"kv":{"read":["/a"],"write":["/b"]}}}]}`},
		{"DELETE", roles + "/q", "", "", `404 {"message":"auth: Role q doesn't exist."}`},
		{"DELETE", roles + "/root", "", "", `403 {"message":"auth: Cannot modify role root: is root role."}`},
		{"PUT", roles + "/root", "", `{"role":"root","grant":{"kv":{"read":["/a"]}}}`, `403 {"message":"auth: Cannot modify role root: is root role."}`},
		{"DELETE", r, "", "", `200 `},
		{"GET", r, "", "", `404 {"message":"auth: Role r does not exist."}`},
		{"DELETE", u, "", "", `200 `},
		{"GET", "/v2/auth", "", "", `404 404 page not found`},
		{"GET", "/v2/auth/enable/", "", "", `404 404 page not found`},
	})
	// The first write to the data took four indexes for its directories.
	if got, want := m.store.Index(), uint64(3+4+6+4); got != want {
		t.Errorf("index %d, want %d", got, want)
	}
}

// secured is a node with authentication on, and the users root (password pw), bob with the
// role dev, and eve without roles.
func secured(t *testing.T, o Options) (*node, http.Handler) {
	t.Helper()
	m := newNode(t)
	h := m.handler(o)
	play(t, h, []line{
		{"PUT", "/v2/keys/dev/k", "", "value=1", "201 …"},
		{"PUT", "/v2/keys/shut", "", "value=1", "201 …"},
		{"PUT", "/v2/auth/users/root", "", `{"user":"root","password":"pw"}`, `201 {"user":"root","roles":["root"]}`},
		{"PUT", "/v2/auth/roles/dev", "", `{"role":"dev","permissions":{"kv":{"read":["/dev*","/r"],"write":["/dev/*","/w",""]}}}`, "201 …"},
		{"PUT", "/v2/auth/users/bob", "", `{"user":"bob","password":"bob:pw","roles":["nobody","dev"]}`, "200 …"},
		{"PUT", "/v2/auth/users/eve", "", `{"user":"eve","password":"pw"}`, "201 …"},
		{"PUT", "/v2/auth/roles/guest", "", `{"role":"guest","permissions":{"kv":{"read":["/pub","/dir/*"]}}}`, "201 …"},
		{"PUT", "/v2/auth/enable", "", "", "200 "},
	})
	return m, h
}

func TestPermissions(t *testing.T) {
	_, h := secured(t, Options{})
	const bob, root, eve = "bob:bob:pw", "root:pw", "eve:pw"
	missing := `404 {"errorCode":100,…`
	play(t, h, []line{
		{"GET", "/v2/keys/shut", "", "", denied},
		{"GET", "/v2/keys/shut", bob, "", denied},
		{"GET", "/v2/keys/shut", root, "", "200 …"},
		{"GET", "/v2/keys/shut", "root:wrong", "", denied},
		{"GET", "/v2/keys/shut", "nobody:pw", "", denied},
		{"GET", "/v2/keys/shut", "Basic !", "", denied},
		{"GET", "/v2/keys/pub", "Bearer x", "", denied}, // a failed authentication is not a guest
		{"GET", "/v2/keys/pub", eve, "", denied},
		{"GET", "/v2/keys/pub", "", "", missing},
		{"HEAD", "/v2/keys/pub", "", "", missing},
		{"PUT", "/v2/keys/pub", "", "", denied},
		{"GET", "/v2/keys/pub?recursive=true", "", "", missing}, // for guests nothing more is checked
		{"GET", "/v2/keys/dir/x", "", "", missing},
		{"GET", "/v2/keys/dir", "", "", denied},
		{"GET", "/v2/keys/dir/", "", "", missing},
		{"GET", "/v2/keys/dir/%2e%2e/shut", "", "", denied},
		{"GET", "/v2/keys/dir/%2e%2e%2fpub", "", "", missing},

		{"GET", "/v2/keys/dev/k", bob, "", "200 …"},
		{"GET", "/v2/keys/dev", bob, "", "200 …"},
		{"GET", "/v2/keys/developers", bob, "", missing},
		{"GET", "/v2/keys/dev?recursive=true", bob, "", "200 …"},
		{"GET", "/v2/keys/r", bob, "", missing},
		{"GET", "/v2/keys/r?recursive=true", bob, "", denied}, // needs a pattern with *
		{"GET", "/v2/keys", bob, "", denied},
		{"PUT", "/v2/keys/dev/x", bob, "value=1", "201 …"},
		{"PUT", "/v2/keys/dev/x?recursive=true", bob, "value=1", "200 …"},
		{"PUT", "/v2/keys/dev", bob, "dir=true", denied},
		{"POST", "/v2/keys/dev", bob, "value=1", denied}, // tested on the directory
		{"POST", "/v2/keys/dev/", bob, "value=1", "201 …"},
		{"POST", "/v2/keys/w", bob, "dir=1", "201 …"},
		{"DELETE", "/v2/keys/dev/x?wait=true", bob, "", `400 {"errorCode":209,…`}, // validation comes first
		{"DELETE", "/v2/keys/dev/x", bob, "", "200 …"},
		{"DELETE", "/v2/keys/r", bob, "", denied},
		{"GET", "/v2/keys/shut?wait=true", bob, "", denied},
		{"DELETE", "/v2/keys?recursive=true", root, "", `400 {"errorCode":107,"message":"Root is read only","cause":"/",…`},
		// The tree has more than the keys of clients.
		{"GET", "/v2/keys/%2e%2e/2/users/root", root, "", `404 {"errorCode":100,"message":"Key not found","cause":"/2",…`},

		{"GET", "/v2/auth/enable", "", "", `200 {"enabled":true}`},
		{"PUT", "/v2/auth/enable", "", "", deniedRoot},
		{"GET", "/v2/auth/users", bob, "", deniedRoot},
		{"GET", "/v2/auth/roles/dev", "", "", deniedRoot},
		{"GET", "/v2/auth/users/bob", root, "", `404 {"message":"auth: Role nobody does not exist."}`},
		{"DELETE", "/v2/auth/users/root", root, "", `403 {"message":"auth: Cannot delete root user while auth is enabled."}`},
		{"POST", "/v2/members", bob, `@application/json {"peerURLs":["http://b:2"]}`, deniedRoot},
		{"POST", "/v2/members", root, `@application/json {"peerURLs":["http://b:2"]}`, "201 …"},
		{"GET", "/v2/members", "", "", "200 …"},
		{"GET", "/v2/machines", "", "", "200 …"},
		{"GET", "/v2/stats/store", "", "", "200 …"},

		{"PUT", "/v2/auth/users/bob", root, `{"user":"bob","password":"new"}`, "200 …"},
		{"GET", "/v2/keys/dev/k", bob, "", denied},
		{"GET", "/v2/keys/dev/k", "bob:new", "", "200 …"},
		{"DELETE", "/v2/auth/roles/guest", root, "", "200 "},
		{"GET", "/v2/keys/pub", "", "", denied},
		{"DELETE", "/v2/auth/enable", root, "", "200 "},
		{"GET", "/v2/keys/shut", "x:y", "", "200 …"},
		{"PUT", "/v2/auth/enable", "", "", "200 "}, // creates a guest with all permissions
		{"GET", "/v2/keys/shut", "", "", "200 …"},
	})
}

// A name in an Authorization header is one element of a path: it does not lead to what
// clients can write, nor to a node that is not a user.
func TestNamesStayWhereTheyAre(t *testing.T) {
	m, h := secured(t, Options{})
	hash, err := bcrypt.GenerateFromPassword([]byte("mine"), bcryptC)
	if err != nil {
		t.Fatal(err)
	}
	play(t, h, []line{
		{"PUT", "/v2/keys/dev/me", "root:pw", fmt.Sprintf("value=%s", urlEscape(fmt.Sprintf(`{"user":"me","password":%q,"roles":["root"]}`, hash))), "201 …"},
		{"PUT", "/v2/keys/dev/all", "root:pw", "value=" + urlEscape(`{"role":"all","permissions":{"kv":{"read":["/*"],"write":["/*"]}}}`), "201 …"},
		{"GET", "/v2/keys/shut", "../../1/dev/me:mine", "", denied},
		{"GET", "/v2/auth/users", "../../1/dev/me:mine", "", deniedRoot},
		{"GET", "/v2/keys/shut", "../enabled:", "", denied},
		{"GET", "/v2/keys/shut", ":", "", denied},
		{"GET", "/v2/keys/shut", ".:", "", denied},
		{"GET", "/v2/keys/shut", "..:", "", denied},
		{"PUT", "/v2/auth/users/eve", "root:pw", `{"user":"eve","grant":["../../1/dev/all"]}`, "200 …"},
		{"GET", "/v2/keys/shut", "eve:pw", "", denied},
	})
	if _, err := m.store.Get("/2/users/eve", false, false); err != nil {
		t.Error(err)
	}
}

func urlEscape(s string) string {
	return strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", "$", "%24", ";", "%3B").Replace(s)
}

// With --client-cert-auth a client without a password is the user named in its certificate.
func TestCertificates(t *testing.T) {
	_, h := secured(t, Options{ClientCertAuth: true})
	_, without := secured(t, Options{})
	chain := func(names ...string) []*x509.Certificate {
		var certs []*x509.Certificate
		for _, n := range names {
			certs = append(certs, &x509.Certificate{Subject: pkix.Name{CommonName: n}})
		}
		return certs
	}
	for _, tt := range []struct {
		what          string
		h             http.Handler
		chains        [][]*x509.Certificate
		target, basic string
		want          int
	}{
		{"by name", h, [][]*x509.Certificate{chain("bob", "ca")}, "/v2/keys/dev/k", "", 200},
		{"by name, not allowed", h, [][]*x509.Certificate{chain("bob", "ca")}, "/v2/keys/shut", "", 401},
		{"root", h, [][]*x509.Certificate{chain("root")}, "/v2/auth/users", "", 200},
		{"no administrator", h, [][]*x509.Certificate{chain("bob")}, "/v2/auth/users", "", 401},
		{"the second chain", h, [][]*x509.Certificate{{}, chain("nobody"), chain("root")}, "/v2/auth/users", "", 200},
		{"an authority is no client", h, [][]*x509.Certificate{chain("nobody", "root")}, "/v2/auth/users", "", 401},
		{"nobody's is a guest's", h, [][]*x509.Certificate{chain("nobody")}, "/v2/keys/pub", "", 404},
		{"a password goes before", h, [][]*x509.Certificate{chain("root")}, "/v2/keys/shut", "bob:bob:pw", 401},
		{"not asked for", without, [][]*x509.Certificate{chain("root")}, "/v2/auth/users", "", 401},
		{"none", h, nil, "/v2/keys/pub", "", 404},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", tt.target, nil)
		r.TLS = &tls.ConnectionState{VerifiedChains: tt.chains}
		if name, password, ok := strings.Cut(tt.basic, ":"); ok {
			r.SetBasicAuth(name, password)
		}
		w := httptest.NewRecorder()
		tt.h.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.what, w.Code, w.Body, tt.want)
		}
	}
}

// No header grants access without a password.
func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"", "Basic", "Basic ", "Bearer x", "basic " + base64.StdEncoding.EncodeToString([]byte("bob:x")),
		"Basic " + base64.StdEncoding.EncodeToString([]byte("../../1/dev/me:mine")), "Basic " + base64.StdEncoding.EncodeToString([]byte(":"))} {
		f.Add(s)
	}
	m := newNode(f)
	h := m.handler(Options{ClientCertAuth: true})
	for _, l := range []line{
		{"PUT", "/v2/keys/shut", "", "value=1", ""},
		{"PUT", "/v2/auth/users/root", "", `{"user":"root","password":"a long one that is not found by chance"}`, ""},
		{"PUT", "/v2/auth/roles/guest", "", `{"role":"guest"}`, ""},
		{"PUT", "/v2/auth/enable", "", "", ""},
	} {
		ask(f, h, l.method, l.target, l.user, l.body)
	}
	f.Fuzz(func(t *testing.T, header string) {
		for _, target := range []string{"/v2/keys/shut", "/v2/auth/users"} {
			r := httptest.NewRequestWithContext(t.Context(), "GET", target, nil)
			r.Header.Set("Authorization", header)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusUnauthorized {
				t.Fatalf("%q: %s: %d %s", header, target, w.Code, w.Body)
			}
		}
	})
}

// Concurrent changes of one user are all stored.
func TestChangesAtOnce(t *testing.T) {
	_, h := secured(t, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if got := ask(t, h, "PUT", "/v2/auth/users/eve", "root:pw", fmt.Sprintf(`{"user":"eve","grant":["r%d"]}`, i)); !strings.HasPrefix(got, "200 ") {
				t.Errorf("grant %d: %s", i, got)
			}
		})
	}
	wg.Wait()
	play(t, h, []line{{"PUT", "/v2/auth/users/eve", "root:pw", `{"user":"eve","grant":["z"]}`, `200 {"user":"eve","roles":["r0","r1","r2","r3","r4","r5","r6","r7","z"]}`}})
}
