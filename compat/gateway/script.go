package gateway

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// request is one HTTP request whose answer is finite.
type request struct {
	method  string // POST if empty
	path    string
	body    string
	headers []string // name, value, name, value
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// post is a list of requests in which every string in double braces is encoded as base64.
func post(path string, bodies ...string) []request {
	out := make([]request, len(bodies))
	for i, b := range bodies {
		out[i] = request{path: path, body: encode(b)}
	}
	return out
}

func encode(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "{{")
		if !ok {
			return s
		}
		inner, after, _ := strings.Cut(rest, "}}")
		s = before + b64(inner) + after
	}
}

func join(lists ...[]request) (all []request) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// kv goes through keys, transactions and history.
var kv = join(
	post("/v3/kv/put",
		`{"key":"{{a}}","value":"{{1}}"}`,
		`{"key":"{{a}}","value":"{{2}}","prev_kv":true}`,
		`{"key":"{{a}}","value":"{{3}}","prevKv":true}`,
		`{"key":"{{b}}","value":"{{x}}","lease":"7"}`,
		`{"key":"{{b}}","lease":7}`,
		`{"key":"{{b}}","ignore_value":true}`,
		`{"key":"{{b}}","value":"{{x}}","ignore_value":true}`,
		`{"key":"{{c}}"}`,
		`{"key":"{{c}}","nobody":"knows","value":"{{v}}"}`,
		`{"key":"`+b64("d")+`","value":"`+base64.URLEncoding.EncodeToString([]byte{0xfb, 0xff, 0xfe})+`"}`,
		`{}`, ``, `null`, `[]`, `{`, `{"key":"!!"}`, `{"key":7}`, `{"key":"{{a}}","lease":"seven"}`, `{"key":"{{a}}"} trailing`,
	),
	post("/v3/kv/range",
		`{"key":"{{a}}"}`,
		`{"key":"{{a}}","range_end":"{{z}}"}`,
		`{"key":"{{a}}","rangeEnd":"{{z}}","limit":1}`,
		`{"key":"{{a}}","range_end":"{{z}}","limit":"2","sort_order":"DESCEND","sort_target":"KEY"}`,
		`{"key":"{{a}}","range_end":"{{z}}","sort_order":2,"sort_target":3}`,
		`{"key":"{{a}}","range_end":"{{z}}","sort_order":"UP"}`,
		`{"key":"{{a}}","range_end":"{{z}}","keys_only":true}`,
		`{"key":"{{a}}","range_end":"{{z}}","count_only":true}`,
		`{"key":"{{a}}","range_end":"{{z}}","serializable":true}`,
		`{"key":"{{a}}","revision":"2"}`,
		`{"key":"{{a}}","revision":"99"}`,
		`{"key":"AA==","range_end":"AA=="}`,
		`{"key":"{{nothing}}"}`,
		`{"range_end":"{{z}}"}`,
		`{"key":"{{a}}","min_mod_revision":"3","max_create_revision":9}`,
	),
	post("/v3/kv/txn",
		`{"compare":[{"key":"{{a}}","result":"EQUAL","target":"VALUE","value":"{{3}}"}],"success":[{"requestPut":{"key":"{{t}}","value":"{{yes}}"}},{"request_range":{"key":"{{a}}"}}],"failure":[{"requestDeleteRange":{"key":"{{a}}"}}]}`,
		`{"compare":[{"key":"{{a}}","result":"GREATER","target":"VERSION","version":"100"}],"success":[],"failure":[{"requestTxn":{"success":[{"requestRange":{"key":"{{t}}"}}]}}]}`,
		`{"compare":[{"key":"{{a}}","target":"MOD","mod_revision":"4"},{"key":"{{a}}","target":"CREATE","createRevision":2,"result":"NOT_EQUAL"},{"key":"{{b}}","target":"LEASE","lease":"0"}]}`,
		`{"success":[{"requestPut":{"key":"{{t}}"}},{"requestPut":{"key":"{{t}}"}}]}`,
		`{"success":[{}]}`,
		`{"success":[{"requestPut":{}}]}`,
		`{"success":[{"requestPut":{"key":"{{t}}"},"requestRange":{"key":"{{t}}"}}]}`,
		`{}`,
	),
	post("/v3/kv/deleterange",
		`{"key":"{{t}}","prev_kv":true}`,
		`{"key":"{{t}}"}`,
		`{}`,
	),
	post("/v3/kv/compaction", `{"revision":"3"}`, `{"revision":3}`, `{"revision":"1000"}`, `{"revision":"-1"}`, `{}`, `{"revision":"4","physical":true}`),
	post("/v3/kv/range", `{"key":"{{a}}","revision":"2"}`),
)

var leases = join(
	post("/v3/lease/grant", `{"ID":"7","TTL":"600"}`, `{"ID":7,"TTL":600}`, `{"ID":"8","TTL":"99999999999"}`, `{"ID":"9"}`),
	post("/v3/kv/put", `{"key":"{{l}}","value":"{{x}}","lease":"7"}`),
	post("/v3/lease/timetolive", `{"ID":"7"}`, `{"ID":"7","keys":true}`, `{"ID":"404"}`, `{}`),
	post("/v3/kv/lease/timetolive", `{"ID":"7","keys":true}`),
	post("/v3/lease/leases", `{}`, ``),
	post("/v3/kv/lease/leases", `{}`),
	post("/v3/lease/keepalive", `{"ID":"7"}`, `{"ID":"404"}`, `{"ID":"7"}
{"ID":"404"}
{"ID":"7"}`, ``, `{"ID":`),
	post("/v3/lease/revoke", `{"ID":"404"}`),
	post("/v3/kv/lease/revoke", `{"ID":"7"}`, `{"ID":"7"}`),
)

var locks = join(
	post("/v3/lease/grant", `{"ID":"21","TTL":"600"}`, `{"ID":"22","TTL":"600"}`),
	post("/v3/lock/lock", `{"name":"{{l}}","lease":"21"}`, `{"name":"{{l}}","lease":21}`, `{"name":"{{l}}","lease":"404"}`, `{"name":1}`),
	post("/v3/lock/unlock", `{"key":"{{l/15}}"}`, `{"key":"{{l/15}}"}`, `{}`),
	post("/v3/election/leader", `{"name":"{{e}}"}`),
	post("/v3/election/campaign", `{"name":"{{e}}","lease":"21","value":"{{one}}"}`, `{"name":"{{e}}","lease":"21","value":"{{two}}"}`),
	post("/v3/election/leader", `{"name":"{{e}}"}`),
	post("/v3/election/proclaim", `{"leader":{"name":"{{e}}","key":"{{e/15}}","rev":"1","lease":"21"},"value":"{{x}}"}`, `{}`),
	post("/v3/election/resign", `{"leader":{"name":"{{e}}","key":"{{e/15}}","rev":"1","lease":"21"}}`, `{}`),
	post("/v3/lease/revoke", `{"ID":"21"}`),
	post("/v3/election/leader", `{"name":"{{e}}"}`),
)

var admin = join(
	post("/v3/cluster/member/list", `{}`, `{"linearizable":true}`, ``),
	post("/v3/cluster/member/add", `{"peerURLs":["http://127.0.0.1:2380"]}`, `{"peerURLs":["nonsense"]}`, `{}`),
	post("/v3/cluster/member/remove", `{"ID":"1"}`, `{"ID":"18446744073709551615"}`, `{"ID":"18446744073709551616"}`),
	post("/v3/cluster/member/update", `{"ID":"1","peerURLs":["http://127.0.0.1:9"]}`),
	post("/v3/cluster/member/promote", `{"ID":"1"}`),
	post("/v3/maintenance/status", `{}`, ``),
	post("/v3/maintenance/alarm", `{}`, `{"action":"GET"}`, `{"action":"ACTIVATE","memberID":"1","alarm":"NOSPACE"}`),
	post("/v3/kv/put", `{"key":"{{full}}"}`),
	post("/v3/maintenance/alarm", `{"action":"GET","alarm":"NOSPACE"}`, `{"action":"DEACTIVATE","memberID":"1","alarm":"NOSPACE"}`, `{"action":"NOSUCH"}`),
	post("/v3/maintenance/hashkv", `{}`, `{"revision":"1000"}`),
	post("/v3/maintenance/transfer-leadership", `{"targetID":"1"}`),
	post("/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.6"}`, `{"action":"VALIDATE","version":"3.5"}`, `{"action":"VALIDATE","version":"x"}`, `{}`),
	post("/v3/maintenance/defragment", `{}`),
)

// malformed are paths, methods and headers that the gateway must refuse or ignore.
var malformed = []request{
	{method: "GET", path: "/v3/kv/range"},
	{method: "PUT", path: "/v3/kv/range", body: `{}`},
	{method: "DELETE", path: "/v3/kv/range"},
	{method: "HEAD", path: "/v3/kv/range"},
	{method: "OPTIONS", path: "/v3/kv/range"},
	{method: "GET", path: "/v3/"},
	{method: "GET", path: "/v3"},
	{path: "/v3/kv"},
	{path: "/v3/kv/"},
	{path: "/v3/kv/rangestream", body: `{}`},
	{path: "/v3/kv/range/", body: `{"key":"YQ=="}`},
	{path: "/v3//kv/range", body: `{"key":"YQ=="}`},
	{path: "/v3/unknown/method", body: `{}`},
	{path: "/v3/kv/range?key=YQ==", body: `{}`},
	{path: "/v3beta/kv/range", body: `{"key":"YQ=="}`},
	{path: "/v3alpha/kv/range", body: `{"key":"YQ=="}`},
	{path: "/v3beta", body: `{}`},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Content-Type", "application/json"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Content-Type", "text/plain"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Accept", "application/xml"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Content-Type", "application/x-www-form-urlencoded"}},
	{method: "GET", path: "/v3/kv/range", headers: []string{"X-HTTP-Method-Override", "POST"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Grpc-Timeout", "1n"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Grpc-Timeout", "soon"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Grpc-Metadata-Hasleader", "true"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Grpc-Metadata-Client-Api-Version", "3.7"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Authorization", "nobody.knows"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"TE", "trailers"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, headers: []string{"Origin", "http://web.example"}},
	{path: "/v3/kv/put", body: fmt.Sprintf(`{"key":"YQ==","value":"%s"}`, strings.Repeat("AAAA", 420_000))},
	{path: "/v3/kv/put", body: fmt.Sprintf(`{"key":"YQ==","value":"%s"}`, strings.Repeat("AAAA", 700_000))},
}

// auth enables authentication and disables it at the end. TOKEN in a header stands for the token that the server
// issued last.
var auth = join(
	post("/v3/auth/status", `{}`),
	post("/v3/auth/enable", `{}`),
	post("/v3/auth/user/add", `{"name":"root","password":"r"}`, `{"name":"u","password":"p"}`, `{"name":"u","password":"p"}`, `{"name":""}`, `{"name":"n","options":{"no_password":true}}`),
	post("/v3/auth/role/add", `{"name":"root"}`, `{"name":"r"}`, `{"name":"r"}`, `{}`),
	post("/v3/auth/role/grant", `{"name":"r","perm":{"key":"{{k}}","range_end":"{{l}}","permType":"READWRITE"}}`, `{"name":"r","perm":{"permType":"READ"}}`, `{"name":"x","perm":{"key":"{{k}}"}}`),
	post("/v3/auth/role/get", `{"role":"r"}`, `{"role":"x"}`),
	post("/v3/auth/user/grant", `{"user":"root","role":"root"}`, `{"user":"u","role":"r"}`, `{"user":"u","role":"x"}`),
	post("/v3/auth/user/get", `{"name":"u"}`, `{"name":"x"}`),
	post("/v3/auth/user/list", `{}`),
	post("/v3/auth/role/list", `{}`),
	post("/v3/auth/enable", `{}`),
	post("/v3/kv/put", `{"key":"{{k}}","value":"{{1}}"}`),
	post("/v3/auth/authenticate", `{"name":"u","password":"wrong"}`, `{"name":"x","password":"p"}`, `{}`, `{"name":"u","password":"p"}`),
	as("TOKEN", post("/v3/kv/put", `{"key":"{{k}}","value":"{{1}}"}`, `{"key":"{{z}}","value":"{{1}}"}`)),
	as("Bearer TOKEN", post("/v3/kv/range", `{"key":"{{k}}"}`, `{"key":"{{z}}"}`)),
	as("TOKEN", post("/v3/auth/user/list", `{}`)),
	as("wrong", post("/v3/kv/range", `{"key":"{{k}}"}`)),
	as("", post("/v3/kv/range", `{"key":"{{k}}"}`)),
	as("TOKEN", post("/v3/lock/lock", `{"name":"{{k}}","lease":"404"}`, `{"name":"{{z}}","lease":"404"}`)),
	as("TOKEN", post("/v3/election/leader", `{"name":"{{k}}"}`, `{"name":"{{z}}"}`)),
	post("/v3/auth/authenticate", `{"name":"root","password":"r"}`),
	as("TOKEN", join(
		post("/v3/auth/user/changepw", `{"name":"u","password":"q"}`),
		post("/v3/auth/user/revoke", `{"name":"u","role":"r"}`, `{"name":"u","role":"r"}`),
		post("/v3/auth/role/revoke", `{"role":"r","key":"{{k}}","range_end":"{{l}}"}`),
		post("/v3/auth/role/delete", `{"role":"r"}`),
		post("/v3/auth/user/delete", `{"name":"u"}`),
		post("/v3/auth/status", `{}`),
		post("/v3/auth/disable", `{}`),
	)),
	post("/v3/auth/status", `{}`),
)

// as sends requests with an Authorization header.
func as(token string, requests []request) []request {
	for i := range requests {
		requests[i].headers = append(requests[i].headers, "Authorization", token)
	}
	return requests
}
