package differential

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The lane's binaries, relative to the compat module: what its make targets build.
var (
	flagA = flag.String("a", "../bin/etcd37", "reference server binary")
	flagB = flag.String("b", "../../bin/etcd", "server binary under test")
	skip  = flag.String("skip", "", "sections to leave out, comma separated")
)

func TestServersAnswerAlike(t *testing.T) {
	for _, p := range []string{*flagA, *flagB} {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("server binary: %v (build both first: make compat)", err)
		}
	}
	left := strings.Split(*skip, ",")
	for _, name := range SectionNames() {
		if slices.Contains(left, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			res, err := Run(context.Background(), Options{A: *flagA, B: *flagB, Sections: []string{name}, KeepDir: filepath.Join(t.TempDir(), "run")}, &out)
			if err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			if res.Different > 0 {
				t.Errorf("%d of %d operations are answered differently:\n%s", res.Different, res.Operations, out.String())
			}
		})
	}
}

func TestScriptHasBreadth(t *testing.T) {
	n := 0
	for _, s := range sections() {
		n += len(s.ops)
	}
	if n < 450 {
		t.Errorf("script has %d operations, want at least 450", n)
	}
}

// The comparison must detect each kind of difference, and report nothing for equal answers.
func TestCompareSeesDifferences(t *testing.T) {
	response := func() *pb.RangeResponse {
		return &pb.RangeResponse{
			Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 2, Revision: 3, RaftTerm: 4},
			Kvs:    []*mvccpb.KeyValue{{Key: []byte("k"), Value: []byte("v"), ModRevision: 3}},
			Count:  1,
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*pb.RangeResponse)
		want   string // path of the one differing field; empty if none
	}{
		{"nothing", func(*pb.RangeResponse) {}, ""},
		{"term", func(r *pb.RangeResponse) { r.Header.RaftTerm = 9 }, ""},
		{"term zero", func(r *pb.RangeResponse) { r.Header.RaftTerm = 0 }, "header.raft_term"},
		{"revision", func(r *pb.RangeResponse) { r.Header.Revision = 4 }, "header.revision"},
		{"member", func(r *pb.RangeResponse) { r.Header.MemberId = 4 }, "header.member_id"},
		{"value", func(r *pb.RangeResponse) { r.Kvs[0].Value = []byte("w") }, "kvs[0].value"},
		{"absent field", func(r *pb.RangeResponse) { r.Kvs[0].ModRevision = 0 }, "kvs[0].mod_revision"},
		{"added field", func(r *pb.RangeResponse) { r.More = true }, "more"},
		{"unknown field", func(r *pb.RangeResponse) { r.ProtoReflect().SetUnknown([]byte{0x78, 1}) }, "(unknown fields)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changed := response()
			tc.change(changed)
			s := &session{names: map[uint64]string{}}
			lines := compare(s.answerOf(response(), nil), s.answerOf(changed, nil))
			switch {
			case tc.want == "" && len(lines) > 0:
				t.Errorf("got differences %q, want none", lines)
			case tc.want != "" && (len(lines) != 1 || !bytes.HasPrefix([]byte(lines[0]), []byte(tc.want+" "))):
				t.Errorf("got %q, want one line for %s", lines, tc.want)
			}
		})
	}
}

func TestCompareSeesErrors(t *testing.T) {
	a := failed(status.Error(codes.NotFound, "etcdserver: requested lease not found"))
	for _, other := range []error{
		status.Error(codes.Unknown, "etcdserver: requested lease not found"),
		status.Error(codes.NotFound, "etcdserver: requested lease not found."),
	} {
		if len(compare(a, failed(other))) != 1 {
			t.Errorf("%v: got no difference, want one", other)
		}
	}
	if lines := compare(a, a); len(lines) > 0 {
		t.Errorf("equal errors: got %q, want none", lines)
	}
}

// A revision that arrives in two responses without the fragment flag is reported.
func TestWatchAnswerSeesTornRevisions(t *testing.T) {
	s := &session{names: map[uint64]string{}}
	response := func(mod int64, fragment bool) *pb.WatchResponse {
		return &pb.WatchResponse{WatchId: 1, Fragment: fragment,
			Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: mod}}}}
	}
	find := func(a answer, path string) string {
		for _, f := range a {
			if f.path == path {
				return f.value
			}
		}
		return "(absent)"
	}
	for _, tc := range []struct {
		name      string
		responses []*pb.WatchResponse
		torn      string
	}{
		{"two revisions", []*pb.WatchResponse{response(5, false), response(6, false)}, "0"},
		{"one revision twice", []*pb.WatchResponse{response(5, false), response(5, false)}, "1"},
		{"fragments", []*pb.WatchResponse{response(5, true), response(5, false)}, "0"},
	} {
		if got := find(s.watchAnswer(tc.responses), "watcher 1 torn revisions"); got != tc.torn {
			t.Errorf("%s: got %s torn revisions, want %s", tc.name, got, tc.torn)
		}
	}
}
