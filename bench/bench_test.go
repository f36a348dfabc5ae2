package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// The hand-encoded bytes must be what the generated code would decode and encode.
func TestRequestsDecode(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  proto.Message
	}{
		{"put", putRequest(nil, []byte("k"), []byte("v")), &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}},
		{"get", rangeRequest(nil, []byte("k"), rangeOptions{}), &pb.RangeRequest{Key: []byte("k")}},
		{"list", rangeRequest(nil, []byte("k"), rangeOptions{end: []byte("l"), limit: 1000, serializable: true, countOnly: true}),
			&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 1000, Serializable: true, CountOnly: true}},
		{"compact", compactRequest(300), &pb.CompactionRequest{Revision: 300, Physical: true}},
		{"watch", watchCreate([]byte("k")), &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}},
		{"txn", txnPuts([][]byte{putRequest(nil, []byte("a"), []byte("1")), putRequest(nil, []byte("b"), []byte("2"))}),
			&pb.TxnRequest{Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Value: []byte("1")}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b"), Value: []byte("2")}}},
			}}},
		{"update", txnUpdate(nil, []byte("k"), []byte("v")), &pb.TxnRequest{
			Compare: []*pb.Compare{{Result: pb.Compare_GREATER, Target: pb.Compare_MOD, Key: []byte("k")}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k")}}}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := proto.Clone(tc.want)
			proto.Reset(got)
			if err := proto.Unmarshal(tc.bytes, got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAnswersAreRead(t *testing.T) {
	event := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 7}}
	b, err := proto.Marshal(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 9}, WatchId: 3, Events: []*mvccpb.Event{event, event}})
	if err != nil {
		t.Fatal(err)
	}
	if n, created, err := countEvents(b); n != 2 || created || err != nil {
		t.Errorf("got %d events, created %v, %v, want 2, false", n, created, err)
	}
	if rev, err := intField(b, 1, 3); rev != 9 || err != nil {
		t.Errorf("got revision %d, %v, want 9", rev, err)
	}
	if _, _, err := countEvents(b[:len(b)-1]); err == nil {
		t.Error("a truncated response: got no error")
	}
	page, err := proto.Marshal(&pb.RangeResponse{Kvs: []*mvccpb.KeyValue{event.Kv, event.Kv}})
	if err != nil {
		t.Fatal(err)
	}
	if err := checkList(&reply{keep: true, body: page}, 2); err != nil {
		t.Error(err)
	}
	if err := checkList(&reply{keep: true, body: page}, 3); err == nil {
		t.Error("a page of 2 for a limit of 3: got no error")
	}
}

func TestKeysAndValues(t *testing.T) {
	a, b := keyAt(nil, "big", 9), keyAt(nil, "big", 10)
	if len(a) != keySize || len(b) != keySize || bytes.Compare(a, b) >= 0 {
		t.Errorf("keys %q and %q: want %d bytes each, in order", a, b, keySize)
	}
	if v, w := valueAt(make([]byte, 64), 1), valueAt(make([]byte, 64), 2); bytes.Equal(v, w) {
		t.Error("values of different seeds are equal")
	}
}

func TestLines(t *testing.T) {
	r := newResults()
	for _, v := range []float64{50, 10, 60} {
		r.add(0, map[string]float64{"put1.cpu": v, "put3.rate": 3, "compact.p99": 1.2})
		r.add(1, map[string]float64{"put1.cpu": 100, "put3.rate": 2.5, "compact.p99": 9})
	}
	r.failed["defrag.time"] = "ours: it broke\nat length"
	ls := r.lines(scales["full"])
	got := map[string]string{}
	for _, l := range ls {
		got[l.id] = l.verdict()
	}
	want := map[string]string{"put1.cpu": "pass, budget met", "put3.rate": "**worse**", "compact.p99": "pass, budget met", "defrag.time": "FAILED"}
	for id, v := range want {
		if got[id] != v {
			t.Errorf("%s: got %q, want %q", id, got[id], v)
		}
	}
	if len(ls) != len(want) {
		t.Errorf("got %d lines, want %d", len(ls), len(want))
	}
	if ls[0].ours != 50 || ls[0].ratio != 0.5 {
		t.Errorf("got median %v and ratio %v, want 50 and 0.5", ls[0].ours, ls[0].ratio)
	}
	for _, l := range ls {
		if l.id == "defrag.time" && l.pass() {
			t.Error("a failed row passes")
		}
	}
	if (line{row: rows[0], ours: math.NaN(), etcd: 1, ratio: math.NaN()}).pass() {
		t.Error("a row that one side lacks passes")
	}
}

func TestEveryRowBelongsToAGroup(t *testing.T) {
	in := map[string]bool{}
	for _, g := range groups {
		for _, id := range g.rows {
			in[id] = true
		}
	}
	for _, r := range rows {
		if !in[r.id] {
			t.Errorf("row %s is in no group, so a group that cannot start would not report it", r.id)
		}
		if title := expand(r.title, scales["full"]); strings.Contains(title, "%") {
			t.Errorf("row %s: title %q", r.id, title)
		}
	}
	if len(in) != len(rows) {
		t.Errorf("groups name %d rows, the table has %d", len(in), len(rows))
	}
}

func TestPercentile(t *testing.T) {
	var o outcome
	for i := range 100 {
		o.latencies = append(o.latencies, time.Duration(i))
	}
	for _, tc := range []struct {
		p    float64
		want time.Duration
	}{{0, 0}, {0.5, 50}, {0.99, 99}, {1, 99}} {
		if got := o.percentile(tc.p); got != tc.want {
			t.Errorf("p%v: got %v, want %v", tc.p, got, tc.want)
		}
	}
}

func TestWriteDocumentReplacesOnlyTheTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"\n"+endMark+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"table one", "table two"} {
		if err := rewriteDocument(path, beginMark, endMark, func(string) (string, error) { return table, nil }); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + beginMark + "\n\ntable two\n" + endMark + "\nafter\n"
	if string(doc) != want {
		t.Errorf("got %q, want %q", doc, want)
	}
	if err := os.WriteFile(path, []byte("no markers"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rewriteDocument(path, beginMark, endMark, func(string) (string, error) { return "x", nil }); err == nil {
		t.Error("a document without markers: got no error")
	}
}

// A run of some groups replaces their rows and keeps the figures of the others.
func TestMergeKeepsOtherGroups(t *testing.T) {
	s := scales["full"]
	sides := [2]*side{{binary: "ours"}, {binary: "etcd"}}
	put := func(ids map[string][2]float64) []line {
		r := newResults()
		for id, v := range ids {
			r.add(0, map[string]float64{id: v[0]})
			r.add(1, map[string]float64{id: v[1]})
		}
		return r.lines(s)
	}
	day := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	old := report(put(map[string][2]float64{"put1.cpu": {111, 222}, "login.put": {3, 4}, "list10.cpu": {5, 6}}), s, sides, day(1), time.Minute)
	got, err := merge(old, put(map[string][2]float64{"login.put": {33, 44}}), s, []string{"login"}, sides, day(2))
	if err != nil {
		t.Fatal(err)
	}
	got, err = merge(got, put(map[string][2]float64{"pinned.put.cpu": {7, 8}, "login.put": {333, 444}}), s, []string{"login", "pinned"}, sides, day(3))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2026-11-01", "| 111 | 222 |", "| 333 | 444 |", "| 5.00 | 6.00 |", "| 7.00 | 8.00 |",
		apart + "login, 2026-11-03", apart + "pinned, 2026-11-03"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(got, want), got)
		}
	}
	for _, gone := range []string{"33.0", "2026-11-02"} {
		if strings.Contains(got, gone) {
			t.Errorf("%q is still there in\n%s", gone, got)
		}
	}
	if strings.Index(got, "put, 1 member, 100 clients") > strings.Index(got, "pinned to one CPU") {
		t.Error("the rows have lost their order")
	}
	if _, err := merge(old, nil, scales["small"], []string{"login"}, sides, day(4)); err == nil {
		t.Error("figures of another scale are mixed")
	}
}
