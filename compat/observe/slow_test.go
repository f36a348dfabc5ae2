package observe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/harness"
)

// slowArgs make every request count as slow.
var slowArgs = []string{"--log-level=info", "--warning-apply-duration=1ns", "--warning-unary-request-duration=1ns"}

var (
	requestID = regexp.MustCompile(`ID:\d+`)
	// byMembers matches requests that members send to each other.
	byMembers = regexp.MustCompile(`cluster_member_attr_set|cluster_version_set`)
)

// slowLine is a line about a slow request with its stable parts: names of fields, and the texts that identify
// the request.
func slowLine(fields map[string]any) string {
	msg, _ := fields["msg"].(string)
	if msg != "apply request took too long" && msg != "request stats" {
		return ""
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(fields)), func(n string) bool { return n == "caller" || n == "ts" || n == "msg" })
	line := fmt.Sprintf("%s %q", msg, names)
	for _, n := range []string{"level", "expected-duration", "prefix", "request", "response", "error", "response type", "request count", "request size", "response count", "response size", "request content"} {
		v, ok := fields[n]
		if !ok {
			continue
		}
		text := strings.Join(strings.Fields(requestID.ReplaceAllString(fmt.Sprint(v), "ID")), " ")
		if n == "response" || n == "response size" {
			text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r >= '0' && r <= '9' }), "#") // sizes hold a header, and so terms
		}
		line += fmt.Sprintf(" %s=%s", n, text)
	}
	return line
}

// slowLines reads them from a member's log, each once.
func slowLines(m *harness.Member) ([]string, error) {
	f, err := os.Open(m.LogPath())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := map[string]bool{}
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var fields map[string]any
		if json.Unmarshal(scanner.Bytes(), &fields) != nil {
			continue
		}
		if l := slowLine(fields); l != "" && !byMembers.MatchString(l) {
			lines[l] = true
		}
	}
	return slices.Sorted(maps.Keys(lines)), scanner.Err()
}

// slowCalls makes one request of each kind that the log distinguishes.
func slowCalls(ctx context.Context, m *harness.Member) error {
	c, err := dial(m.ClientAddr())
	if err != nil {
		return err
	}
	defer c.close()
	key := []byte("slow")
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte("12345")}}}
	kv := pb.NewKVClient(c.conn)
	lease := pb.NewLeaseClient(c.conn)
	for _, call := range []func() error{
		func() error { return second(kv.Put(ctx, &pb.PutRequest{Key: key, Value: []byte("123")})) },
		func() error { return second(kv.Range(ctx, &pb.RangeRequest{Key: key})) },
		func() error {
			return second(kv.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true, CountOnly: true}))
		},
		func() error { return second(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{get, get}})) },
		func() error {
			return second(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put}, Failure: []*pb.RequestOp{get}}))
		},
		func() error { return second(lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 100})) },
		func() error { return second(lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})) },
		func() error { return second(kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key, PrevKv: true})) },
		func() error { return second(kv.Compact(ctx, &pb.CompactionRequest{Revision: 3})) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

// TestSlowRequests compares the lines about slow requests: their texts and the names of their fields, which
// dashboards over logs use.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	members, _ := single(t, slowArgs...)
	var got [2][]string
	for i, m := range members {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := slowCalls(ctx, m); err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
		for last := ""; !strings.Contains(last, "compaction:{revision:3}"); time.Sleep(10 * time.Millisecond) {
			var err error
			if got[i], err = slowLines(m); err != nil {
				t.Fatal(err)
			}
			last = strings.Join(got[i], "\n")
			if ctx.Err() != nil {
				t.Fatalf("server %c does not tell of the compaction:\n%s", 'a'+i, last)
			}
		}
	}
	for _, l := range missing(got[0], got[1]) {
		t.Errorf("missing: %s", l)
	}
	for _, l := range missing(got[1], got[0]) {
		t.Errorf("etcd does not say: %s", l)
	}
}
