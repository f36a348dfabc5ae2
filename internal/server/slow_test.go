package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/apply"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
)

// slowMember returns a slowLog and the lines that it logs.
func slowMember(warn time.Duration) (*slowLog, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	lg := zap.New(core)
	return &slowLog{cfg: &Config{State: apply.Options{WarnApply: warn}}, lg: lg, fewLines: limited(lg)}, logs
}

// line renders an entry with the fields whose values do not depend on time.
func line(e observer.LoggedEntry) string {
	var b strings.Builder
	b.WriteString(e.Level.String() + " " + e.Message)
	m := e.ContextMap()
	for _, k := range []string{"prefix", "request", "response", "error", "operation", "detail"} {
		if v, ok := m[k]; ok {
			b.WriteString(" " + k + "=" + strings.ReplaceAll(strings.Join(strings.Fields(v.(string)), " "), " >", ">"))
		}
	}
	if s, ok := m["steps"].([]any); ok {
		for _, x := range s {
			b.WriteString(" " + x.(string))
		}
	}
	return b.String()
}

// entry returns a committed entry with a request, or a leader's first entry, without one.
func entry(r *pb.InternalRaftRequest) apply.Entry {
	e := apply.Entry{Entry: &raftpb.Entry{}, Req: r}
	if r != nil {
		e.Data = []byte{0}
	}
	return e
}

func TestSlowLines(t *testing.T) {
	start := time.Unix(1, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	put := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 9}, Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("secret")}}
	kvs := &mvcc.Listed{Keys: 2, Bytes: 30, Revision: 7}
	for _, tt := range []struct {
		name string
		do   func(m *slowLog)
		want []string
	}{
		{"range", func(m *slowLog) {
			m.rangeTook(&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b")}, kvs, nil, at(0), at(150), at(160))
		}, []string{
			`warn apply request took too long prefix=read-only range request=key:"a" range_end:"b" response=range_response_count:2 size:30`,
			`info trace operation=range detail={range_begin:a; range_end:b; response_count:2; response_revision:7; } 'agreement among raft nodes before linearized reading'  (duration: 150ms)`,
		}},
		{"failed range", func(m *slowLog) {
			m.rangeTook(&pb.RangeRequest{Key: []byte("a")}, nil, errors.New("no"), at(0), at(10), at(60))
		}, []string{`warn apply request took too long prefix=read-only range request=key:"a" response= error=no`}},
		{"read-only transaction", func(m *slowLog) {
			m.readTxnTook(&pb.TxnRequest{}, &pb.TxnResponse{}, nil, at(0), at(140), at(150))
		}, []string{`info trace operation=transaction detail={read_only:true; } 'agreement among raft nodes before linearized reading'  (duration: 140ms)`}},
		{"put", func(m *slowLog) {
			p := &proposal.Pending{Req: put, Start: at(0)}
			m.proposalTook(p, proposal.Result{Began: at(90), Resp: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 5}}}, at(170))
		}, []string{`info trace operation=put detail={key:k; req_size:11; response_revision:5; } 'process raft request'  (duration: 90ms) 'apply'  (duration: 80ms)`}},
		{"put that was refused", func(m *slowLog) {
			m.proposalTook(&proposal.Pending{Req: put, Start: at(0)}, proposal.Result{Err: errors.New("no")}, at(170))
		}, nil},
		{"slow request of a batch", func(m *slowLog) {
			m.applyTook([]apply.Entry{entry(put), entry(put)}, apply.Outcome{Slow: []apply.Reported{{Req: put, Resp: &pb.PutResponse{}, Took: time.Second}}}, time.Second)
		}, []string{`warn apply request took too long prefix= request=header:<ID:9> put:<key:"k" value_size:6> response=size:0`}},
		{"slow commit of a batch", func(m *slowLog) {
			m.applyTook([]apply.Entry{entry(nil), entry(put), entry(put)}, apply.Outcome{}, time.Second)
		}, []string{`warn apply request took too long prefix=batch of 2 entries request=header:<ID:9> put:<key:"k" value_size:6> response=`}},
		{"batch without requests", func(m *slowLog) { m.applyTook([]apply.Entry{entry(nil)}, apply.Outcome{}, time.Second) }, nil},
		{"refused request", func(m *slowLog) {
			m.applyTook([]apply.Entry{entry(put)}, apply.Outcome{Failed: []apply.Reported{{Req: put, Err: errors.New("no")}}}, 0)
		}, []string{`warn failed to apply request request=header:<ID:9> put:<key:"k" value_size:6> response= error=no`}},
		{"quick batch", func(m *slowLog) { m.applyTook([]apply.Entry{entry(put)}, apply.Outcome{}, 50*time.Millisecond) }, nil},
	} {
		m, logs := slowMember(50 * time.Millisecond)
		tt.do(m)
		var got []string
		for _, e := range logs.All() {
			l := line(e)
			if strings.Contains(l, "secret") {
				t.Errorf("%s: a value is in the log: %s", tt.name, l)
			}
			got = append(got, l)
		}
		if g, w := strings.Join(got, "\n"), strings.Join(tt.want, "\n"); g != w {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, g, w)
		}
	}
}

// A client can cause a rejected request with every one that it sends.
func TestRefusedRequestsDoNotFillTheLog(t *testing.T) {
	m, logs := slowMember(0)
	put := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 9}, Put: &pb.PutRequest{Key: []byte("k")}}
	for range 10_000 {
		m.applyTook(nil, apply.Outcome{Failed: []apply.Reported{{Req: put, Err: errors.New("no")}}}, 0)
	}
	if n := logs.Len(); n < 1 || n > 1_000 {
		t.Errorf("%d lines for 10,000 refused requests", n)
	}
}

func TestRefusedRequestIsLogged(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	c := newCluster(t, 1, func(cfg *Config) { cfg.Logger = zap.New(core) })
	refusals := func() (lines []string) {
		for _, e := range logs.FilterMessage("failed to apply request").All() {
			lines = append(lines, line(e))
		}
		return lines
	}
	m := c.nodes[0].m
	if _, err := m.KV.Put(background(t), &pb.PutRequest{Key: []byte("k"), Value: []byte("secret"), Lease: 7}, nil); err == nil {
		t.Fatal("a put with a lease that does not exist was accepted")
	}
	c.nodes[0].put("k", "v")
	if _, err := m.KV.Compact(background(t), &pb.CompactionRequest{Revision: int64(m.replica.Rev())}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.KV.Compact(background(t), &pb.CompactionRequest{Revision: 1}); err == nil {
		t.Fatal("compacted what is compacted")
	}
	// The second rejection is no failure in etcd: the revision is already compacted.
	got := refusals()
	if len(got) != 1 || !strings.Contains(got[0], "lease not found") || strings.Contains(got[0], "secret") {
		t.Errorf("lines about refused requests: %q, want one about the lease", got)
	}
}
