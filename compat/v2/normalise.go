package v2

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// What may differ: the time, raft's counters next to the index of the store, ids that contain the time, and
// every number in the statistics.
var replacements = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`"expiration":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"`), `"expiration":"TIME"`},
	{regexp.MustCompile(`,"ttl":-\d+`), ``}, // overdue; omitted for up to a second
	{regexp.MustCompile(`"ttl":\d+`), `"ttl":N`},
}

var statistics = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`"startTime":"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)"`), `"startTime":"TIME"`},
	{regexp.MustCompile(`"uptime":"[0-9hmµns.]+s"`), `"uptime":"TIME"`},
	// Omitted while nothing is sent, which depends on timing.
	{regexp.MustCompile(`,"(recv|send)(Pkg|Bandwidth)Rate":[0-9.e+-]+`), ``},
	{regexp.MustCompile(`":[0-9.e+-]+`), `":N`},
}

// compared are the headers that must be equal; the raft ones must only be present.
var compared = []string{"Content-Type", "X-Etcd-Index", "X-Etcd-Cluster-Id", "Allow", "Location", "X-Content-Type-Options",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"}

func normalise(path, body string) string {
	for _, r := range replacements {
		body = r.re.ReplaceAllString(body, r.by)
	}
	if strings.HasPrefix(path, "/v2/stats/") {
		for _, r := range statistics {
			body = r.re.ReplaceAllString(body, r.by)
		}
	}
	return body
}

// describe formats an answer as text.
func describe(path string, resp *http.Response, body string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", resp.StatusCode)
	for _, k := range compared {
		if v := resp.Header.Values(k); len(v) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(v, " | "))
		}
	}
	for _, k := range []string{"X-Raft-Index", "X-Raft-Term"} {
		if regexp.MustCompile(`^\d+$`).MatchString(resp.Header.Get(k)) {
			fmt.Fprintf(&b, "%s: N\n", k)
		}
	}
	b.WriteString(normalise(path, body))
	return b.String()
}
