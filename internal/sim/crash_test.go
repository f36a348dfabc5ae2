package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/server"
)

// crashLane is one production member, with Pebble, on a memory file system that loses power
// again and again. Its timing is that of real goroutines, so only outcomes are compared:
// what was acknowledged before a power loss must be there afterwards.
type crashLane struct {
	t   *testing.T
	rng *rand.Rand
	fs  *vfs.MemFS

	mu        sync.Mutex
	acked     map[string]string // every acknowledged put
	compacted ids.Revision      // highest acknowledged compaction
}

func (l *crashLane) open() *server.Member {
	l.t.Helper()
	m, err := server.Open(context.Background(), server.Config{
		Name: "m", DataDir: "data", PeerURLs: []string{"http://m:2380"}, ClientURLs: []string{"http://m:2379"},
		Bootstrap:     server.Bootstrap{Initial: []membership.InitialMember{{Name: "m", PeerURLs: []string{"http://m:2380"}}}},
		Timing:        server.Timing{Tick: 10 * time.Millisecond, ElectionTicks: 10, PreVote: true},
		SnapshotCount: 150, CatchUpEntries: 50, MaxRequestBytes: 1 << 20, FS: l.fs,
	})
	if err != nil {
		l.t.Fatalf("open: %v", err)
	}
	m.Start()
	select {
	case <-m.Ready():
	case <-m.Failed():
		l.t.Fatalf("start: %v", m.Err())
	}
	return m
}

// put writes one key. Keys below v2Prefix go through the v2 API; then the response is nil.
func (l *crashLane) put(m *server.Member, key, value string) (*pb.PutResponse, error) {
	if strings.HasPrefix(key, v2Prefix) {
		_, err := m.V2.V2Do(context.Background(), &v2request.Request{Method: "PUT", Path: v2Path(key), Val: value})
		return nil, err
	}
	return m.KV.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)}, nil)
}

func (l *crashLane) get(m *server.Member, key string) string {
	l.t.Helper()
	if strings.HasPrefix(key, v2Prefix) {
		e, err := m.V2.V2Do(context.Background(), &v2request.Request{Method: "QGET", Path: v2Path(key)})
		if err != nil {
			return err.Error()
		}
		return *e.Node.Value
	}
	res, err := m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		l.t.Fatal(err)
	}
	return valueOf(res.KVs)
}

// write puts keys until the member stops, and sometimes compacts. The last writer uses the
// v2 API.
func (l *crashLane) write(m *server.Member, writer int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, uint64(writer)))
	prefix := ""
	if writer == crashWriters-1 {
		prefix = v2Prefix
	}
	for n := 0; ; n++ {
		key, value := fmt.Sprintf("%sw%d/k%d", prefix, writer, rng.IntN(40)), fmt.Sprintf("%d.%d.%d", seed, writer, n)
		// Until it is acknowledged the put may have happened or not.
		l.mu.Lock()
		delete(l.acked, key)
		l.mu.Unlock()
		resp, err := l.put(m, key, value)
		if err != nil {
			return
		}
		l.mu.Lock()
		l.acked[key] = value
		l.mu.Unlock()
		if resp != nil && rng.IntN(50) == 0 {
			rev := ids.Revision(resp.Header.Revision) - 5
			if _, err := m.KV.Compact(context.Background(), &pb.CompactionRequest{Revision: int64(rev)}); err == nil {
				l.mu.Lock()
				l.compacted = max(l.compacted, rev)
				l.mu.Unlock()
			}
		}
	}
}

// powerLoss returns what is acknowledged, and what is left of the disk at a later moment.
func (l *crashLane) powerLoss() (acked map[string]string, compacted ids.Revision, disk *vfs.MemFS) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked = make(map[string]string, len(l.acked))
	for k, v := range l.acked {
		acked[k] = v
	}
	return acked, l.compacted, l.fs.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: l.rng.IntN(101), RNG: rand.New(rand.NewPCG(l.rng.Uint64(), 1))})
}

func (l *crashLane) check(m *server.Member, acked map[string]string, compacted ids.Revision) {
	l.t.Helper()
	for k, want := range acked {
		if got := l.get(m, k); got != want {
			l.t.Fatalf("key %s is %q after the crash, %q was acknowledged", k, got, want)
		}
	}
	if compacted > 0 {
		_, err := m.KV.Compact(context.Background(), &pb.CompactionRequest{Revision: int64(compacted)})
		if err == nil {
			l.t.Fatalf("the acknowledged compaction at %d was forgotten", compacted)
		}
	}
	if _, err := m.Maintenance.HashKV(context.Background(), 0); err != nil {
		l.t.Fatal(err)
	}
}

const crashWriters = 4

func TestCrash(t *testing.T) {
	const generations = 6
	for s := *seed; s < *seed+*seeds; s++ {
		l := &crashLane{t: t, rng: rand.New(rand.NewPCG(s, 7)), fs: vfs.NewCrashableMem(), acked: map[string]string{}}
		total := 0
		for g := range generations {
			m := l.open()
			l.check(m, l.acked, l.compacted)
			var wg sync.WaitGroup
			for w := range crashWriters {
				wg.Add(1)
				go func() { defer wg.Done(); l.write(m, w, s*100+uint64(g)) }()
			}
			// The power loss comes after a random amount of work.
			for target := m.Rev() + 20 + ids.Revision(l.rng.Int64N(600)); m.Rev() < target; {
				if _, err := m.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte("w0/k0")}); err != nil {
					t.Fatal(err)
				}
			}
			acked, compacted, disk := l.powerLoss()
			m.Stop()
			wg.Wait()
			l.fs, l.acked, l.compacted = disk, acked, compacted
			total += len(acked)
		}
		m := l.open()
		l.check(m, l.acked, l.compacted)
		m.Stop()
		if total == 0 {
			t.Errorf("seed %d: nothing was acknowledged; the run proves nothing", s)
		}
		t.Logf("seed %d: %d keys checked over %d power losses", s, total, generations)
	}
}

// TestCrashLosesUnsyncedData checks that the disk of the crash lane loses unsynced data:
// otherwise the lane would prove nothing.
func TestCrashLosesUnsyncedData(t *testing.T) {
	fs := vfs.NewCrashableMem()
	f, err := fs.Create("f", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("never synced")); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.CrashClone(vfs.CrashCloneCfg{}).Stat("f"); err == nil {
		t.Fatal("a file that was never synced has survived the crash")
	}
}
