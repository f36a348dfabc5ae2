package h2

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Connections whose clients send the same headers share what was parsed from them, and only they.
func TestSharedRequests(t *testing.T) {
	common := new(atomic.Pointer[parsed])
	call := func(c *requests, token, path, timeout string) request {
		t.Helper()
		h := newHeaderBlock(1 << 20)
		h.begin()
		for _, f := range fieldsFrom(":method", "POST", ":path", path, ":authority", "a", "content-type", "application/grpc", "token", token, "grpc-timeout", timeout) {
			h.add(f)
		}
		if err := h.end(); err != nil {
			t.Fatal(err)
		}
		r, refused := c.parse(h)
		h.release()
		d, _ := parseTimeout(timeout)
		if refused != nil || r.path != path || len(r.md["token"]) != 1 || r.md["token"][0] != token || r.timeout != d || d == 0 {
			t.Fatalf("a call with token %.9q, path %s and timeout %s is parsed as %.99v, %v", token, path, timeout, r, refused)
		}
		return r
	}
	a, b, c := &requests{common: common}, &requests{common: common}, &requests{common: common}
	first := call(a, "x", "/s/m", "1S")
	if again := call(b, "x", "/s/n", "2S"); !sameMap(first.md, again.md) || a.last != b.last {
		t.Error("the same headers of another connection are parsed anew")
	}
	for range 2 { // with what is shared and with what the connection had last
		call(c, "y", "/s/m", "1S")
		call(b, "x", "/s/m", "3S")
		call(a, "z", "/s/m", "1S")
		if got := call(b, "x", "/s/m", "1S"); !sameMap(first.md, got.md) {
			t.Error("a connection has lost what it had parsed")
		}
	}
	for range 2 { // one connection for several clients, as of a proxy
		call(a, "u", "/s/m", "1S")
		call(a, "v", "/s/m", "1S")
	}
	shared := common.Load()
	call(c, strings.Repeat("y", sharedFields), "/s/m", "1S")
	if common.Load() != shared {
		t.Error("headers of any size are retained for other connections")
	}
	if _, refused := a.parse(&headerBlock{fields: fieldsFrom(":method", "POST", ":path", "/s/m", ":authority", "a", "content-type", "application/grpc", "token", "z", "grpc-timeout", "0S")}); refused == nil {
		t.Error("a call without time is accepted")
	}
	if first.timeout != time.Second || first.path != "/s/m" {
		t.Errorf("a later call has changed the first to %v %s", first.timeout, first.path)
	}
}
