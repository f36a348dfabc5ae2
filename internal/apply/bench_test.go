package apply

import (
	"fmt"
	"math/rand"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine/pebble"
	"quorate/internal/lease"
	"quorate/internal/membership"
)

// BenchmarkPut applies puts of 256 bytes with keys of 32 bytes, in batches; cpu
// includes flushes and garbage collection.
func BenchmarkPut(b *testing.B) {
	for _, group := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("batch=%d", group), func(b *testing.B) {
			eng, err := pebble.Open(b.TempDir(), pebble.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer eng.Close()
			m, err := Open(eng, Options{Cluster: membership.New(membership.Options{LocalID: 1, ClusterID: 1, ServerVersion: membership.Version{Major: 3, Minor: 7}}),
				Lessor: lease.New(2, lease.Options{}), Now: time.Now, Logger: zap.NewNop()})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			value := make([]byte, 256)
			rand.New(rand.NewSource(1)).Read(value)
			req := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 7}, Put: &pb.PutRequest{Value: value}}
			data, err := proto.Marshal(req)
			if err != nil {
				b.Fatal(err)
			}
			ents := make([]Entry, group)
			keys := make([][]byte, 100_000)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "/registry/bench/%016d", uint64(i)*0x9e3779b97f4a7c15%1e16)
			}
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				for i := range ents {
					index++
					r := &pb.InternalRaftRequest{Header: req.Header, Put: &pb.PutRequest{Key: keys[index%uint64(len(keys))], Value: value}}
					ents[i] = Entry{Entry: &raftpb.Entry{Index: new(index), Term: new(uint64(2)), Data: data}, Req: r, Local: true}
				}
				if _, err := m.Apply(ents); err != nil {
					b.Fatal(err)
				}
			}
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(used)/float64(index), "cpu-ns/put")
		})
	}
}
