package rpc

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/metrics"
)

// TestWatchBatches opens a stream with many watchers, so that its responses are sent together,
// with large ones in between. Each watcher must get each event once and in order, and every
// message must be counted.
func TestWatchBatches(t *testing.T) {
	const watchers = 300
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	series := newMethodSeries(watchService, grpc.MethodInfo{Name: "Watch", IsClientStream: true, IsServerStream: true}, false)
	sent, sentBytes := counted(series.sent), counted(metrics.NetworkClientGRPCSentBytesTotal)

	s, err := pb.NewWatchClient(conn).Watch(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	recv := func() *pb.WatchResponse {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		size += len(mustMarshal(t, r))
		return r
	}
	for i := range watchers {
		err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
		if err != nil {
			t.Fatal(err)
		}
		if r := recv(); !r.Created || r.WatchId != int64(i) {
			t.Fatalf("got %v, want watcher %d created", r, i)
		}
	}
	values := []int{10, 300, 5000, 1, 16 << 10, 16<<10 - 100, 100_000, 0, 2000}
	for i, n := range values {
		req := &pb.PutRequest{Key: []byte("k"), Value: []byte(strings.Repeat(fmt.Sprint(i), n))}
		if _, err := f.Put(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]int, watchers) // events so far, by watcher
	for n := 0; n < watchers*len(values); {
		r := recv()
		for _, ev := range r.Events {
			i := got[r.WatchId]
			if want := strings.Repeat(fmt.Sprint(i), values[i]); string(ev.Kv.Value) != want || ev.Kv.ModRevision != int64(i+2) {
				t.Fatalf("watcher %d: event %d is of revision %d with %d bytes", r.WatchId, i, ev.Kv.ModRevision, len(ev.Kv.Value))
			}
			got[r.WatchId]++
			n++
		}
	}
	// Responses with several revisions are fewer than the events.
	messages := func() float64 { return counted(series.sent) - sent }
	waitFor(t, "the last batch to be counted", func() bool {
		return counted(metrics.NetworkClientGRPCSentBytesTotal)-sentBytes == float64(size)
	})
	if got := messages(); got < 2*watchers || got > float64(watchers*(1+len(values))) {
		t.Errorf("counted %v messages", got)
	}
}
