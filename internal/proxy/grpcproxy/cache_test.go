package grpcproxy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func rangeReq(key, end string) *pb.RangeRequest {
	r := &pb.RangeRequest{Key: []byte(key), Serializable: true}
	if end != "" {
		r.RangeEnd = []byte(end)
	}
	return r
}

func answer(rev int64, value string) *pb.RangeResponse {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: rev}, Kvs: []*mvccpb.KeyValue{{Value: []byte(value)}}}
}

// keep stores an answer in c as a read would.
func keep(c *cache, token string, r *pb.RangeRequest, a *pb.RangeResponse) {
	d := c.begin(token, r)
	d.store(a)
	d.end()
}

// holds returns what c answers, "" for nothing.
func holds(t *testing.T, c *cache, token string, r *pb.RangeRequest) string {
	t.Helper()
	a, err := c.get(token, r)
	if err != nil {
		t.Fatal(err)
	}
	if a == nil {
		return ""
	}
	return string(a.Kvs[0].Value)
}

func TestSpans(t *testing.T) {
	for _, tc := range []struct {
		a, b span
		want bool
	}{
		{span{"a", ""}, span{"a", ""}, true},
		{span{"a", ""}, span{"b", ""}, false},
		{span{"a", "c"}, span{"b", ""}, true},
		{span{"a", "c"}, span{"c", ""}, false},
		{span{"a", "c"}, span{"a", ""}, true},
		{span{"a", "c"}, span{"b", "d"}, true},
		{span{"a", "c"}, span{"c", "d"}, false},
		{span{"b", "\x00"}, span{"z", ""}, true},
		{span{"b", "\x00"}, span{"a", ""}, false},
		{span{"b", "\x00"}, span{"a", "b"}, false},
		{span{"b", "\x00"}, span{"c", "\x00"}, true},
	} {
		if tc.a.overlaps(tc.b) != tc.want || tc.b.overlaps(tc.a) != tc.want {
			t.Errorf("%q and %q: overlap %v and %v, want %v", tc.a, tc.b, tc.a.overlaps(tc.b), tc.b.overlaps(tc.a), tc.want)
		}
	}
}

func TestCacheKeys(t *testing.T) {
	c := newCache(10, 1<<20)
	linearizable := rangeReq("a", "")
	linearizable.Serializable = false
	keep(c, "", linearizable, answer(5, "one"))
	if got := holds(t, c, "", rangeReq("a", "")); got != "one" {
		t.Errorf("after a linearizable read: %q", got)
	}
	if linearizable.Serializable {
		t.Error("the request was changed")
	}
	if got := holds(t, c, "somebody", rangeReq("a", "")); got != "" {
		t.Errorf("another token reads %q", got)
	}
	limited := rangeReq("a", "")
	limited.Limit = 1
	if got := holds(t, c, "", limited); got != "" {
		t.Errorf("another request reads %q", got)
	}
	keep(c, "", linearizable, answer(4, "older"))
	if got := holds(t, c, "", rangeReq("a", "")); got != "one" {
		t.Errorf("an older answer has replaced a newer: %q", got)
	}
	keep(c, "", linearizable, answer(6, "newer"))
	if got := holds(t, c, "", rangeReq("a", "")); got != "newer" {
		t.Errorf("a newer answer has not replaced an older: %q", got)
	}
	c.clear()
	if got := holds(t, c, "", rangeReq("a", "")); got != "" || c.bytes != 0 {
		t.Errorf("after clear: %q, %d bytes", got, c.bytes)
	}
}

func TestCacheInvalidation(t *testing.T) {
	old := rangeReq("a", "")
	old.Revision = 3
	all := map[string]*pb.RangeRequest{"a": rangeReq("a", ""), "b": rangeReq("b", ""), "a-c": rangeReq("a", "c"), "b-": rangeReq("b", "\x00"), "old": old}
	for _, tc := range []struct {
		of   span
		left string
	}{
		{span{"a", ""}, "b b- old"},
		{span{"b", ""}, "a old"},
		{span{"bb", ""}, "a b old"},
		{span{"c", ""}, "a a-c b old"},
		{span{"0", "a"}, "a a-c b b- old"},
		{span{"0", "aa"}, "b b- old"},
		{span{"0", "\x00"}, "old"},
		{span{"x", "z"}, "a a-c b old"},
	} {
		c := newCache(10, 1<<20)
		for name, r := range all {
			keep(c, "", r, answer(9, name))
		}
		c.invalidate(tc.of)
		var left []string
		for _, name := range []string{"a", "a-c", "b", "b-", "old"} {
			if holds(t, c, "", all[name]) != "" {
				left = append(left, name)
			}
		}
		if got := strings.Join(left, " "); got != tc.left {
			t.Errorf("%q: left %q, want %q", tc.of, got, tc.left)
		}
		c.invalidate(span{"\x00", "\x00"})
		if len(c.points) != 0 || len(c.ranges) != 0 || len(c.entries) != 1 {
			t.Errorf("%q: after all: %d points, %d ranges, %d entries", tc.of, len(c.points), len(c.ranges), len(c.entries))
		}
	}
}

// A read that a write overtakes is not stored, whenever it returns.
func TestCacheReadsInProgress(t *testing.T) {
	c := newCache(10, 1<<20)
	r := rangeReq("a", "c")

	d := c.begin("", r)
	again := c.invalidate(span{"b", ""})
	d.store(answer(1, "before the write"))
	d.end()
	if got := holds(t, c, "", r); got != "" {
		t.Errorf("began before the write: %q", got)
	}

	d = c.begin("", r)
	d.store(answer(1, "during the write"))
	d.end()
	again()
	if got := holds(t, c, "", r); got != "" {
		t.Errorf("began and ended during the write: %q", got)
	}

	d = c.begin("", r)
	again()
	d.store(answer(1, "until after the write"))
	d.end()
	if got := holds(t, c, "", r); got != "" {
		t.Errorf("began during the write, ended after it: %q", got)
	}

	d = c.begin("", r)
	c.invalidate(span{"x", ""})
	d.store(answer(1, "elsewhere"))
	d.end()
	if got := holds(t, c, "", r); got != "elsewhere" {
		t.Errorf("beside a write elsewhere: %q", got)
	}
	d = c.begin("", rangeReq("q", ""))
	c.clear()
	d.store(answer(1, "of other rights"))
	d.end()
	if got := holds(t, c, "", rangeReq("q", "")); got != "" || len(c.reading) != 0 {
		t.Errorf("over a change of rights: %q, %d reads", got, len(c.reading))
	}
}

func TestCacheCompaction(t *testing.T) {
	c := newCache(10, 1<<20)
	at := func(rev int64) *pb.RangeRequest {
		r := rangeReq("a", "")
		r.Revision = rev
		return r
	}
	for rev := int64(0); rev < 5; rev++ {
		keep(c, "", at(rev), answer(9, fmt.Sprint(rev)))
	}
	c.compact(3)
	c.compact(2)
	for rev, want := range []string{"0", "compacted", "compacted", "3", "4"} {
		a, err := c.get("", at(int64(rev)))
		got := "compacted"
		if err == nil {
			got = string(a.Kvs[0].Value)
		} else if !errors.Is(err, rpctypes.ErrGRPCCompacted) {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("revision %d: %q, want %q", rev, got, want)
		}
	}
	if len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}
}

func TestCacheBounds(t *testing.T) {
	c := newCache(3, 1<<20)
	for i := range 4 {
		keep(c, "", rangeReq(fmt.Sprint(i), ""), answer(1, "v"))
		holds(t, c, "", rangeReq("0", ""))
	}
	for i, want := range []string{"v", "", "v", "v"} {
		if got := holds(t, c, "", rangeReq(fmt.Sprint(i), "")); got != want {
			t.Errorf("key %d: %q, want %q", i, got, want)
		}
	}
	c = newCache(1000, 1<<16)
	keep(c, "", rangeReq("large", ""), answer(1, strings.Repeat("x", 1<<13)))
	if len(c.entries) != 0 {
		t.Error("one answer may take more than its share")
	}
	for i := range 100 {
		keep(c, "", rangeReq(fmt.Sprint(i), ""), answer(1, strings.Repeat("x", 1<<11)))
	}
	if n := len(c.entries); c.bytes > 1<<16 || n < 20 || n > 32 {
		t.Errorf("%d entries of %d bytes", n, c.bytes)
	}
}

func TestTouched(t *testing.T) {
	put := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
	}
	inner := &pb.TxnRequest{Failure: []*pb.RequestOp{put("inner")}}
	r := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("c"), RangeEnd: []byte("d")}},
		Success: []*pb.RequestOp{put("s"), {Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}},
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("x"), RangeEnd: []byte{0}}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: rangeReq("r", "")}}, {}},
	}
	want := fmt.Sprint([]span{{"c", "d"}, {"s", ""}, {"inner", ""}, {"x", "\x00"}, {"r", ""}})
	if got := fmt.Sprint(touched(nil, r)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := txnOp(r); !errors.Is(err, rpctypes.ErrGRPCKeyNotFound) {
		t.Errorf("an operation that is none: %v", err)
	}
	r.Success[1].GetRequestTxn().Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{}}}
	r.Failure = nil
	if _, err := txnOp(r); !errors.Is(err, rpctypes.ErrGRPCKeyNotFound) {
		t.Errorf("one within a transaction: %v", err)
	}
}
