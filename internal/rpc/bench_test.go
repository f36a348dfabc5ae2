package rpc

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// The benchmarks run the server in its own process, which is this test binary with benchEnv
// set, to distinguish the CPU time of the server from that of its clients.
const benchEnv = "QUORATE_RPC_BENCH"

func TestMain(m *testing.M) {
	if os.Getenv(benchEnv) != "" {
		benchServer()
		return
	}
	os.Exit(m.Run())
}

// noop is a member that does nothing.
type noop struct {
	wholeMember
	hub *watch.Hub
	rev atomic.Int64
}

func (*noop) ClusterID() ids.Cluster { return fakeCluster }
func (*noop) MemberID() ids.Member   { return fakeMember }
func (*noop) Term() ids.Term         { return ids.Term(fakeTerm) }
func (*noop) Leader() ids.Member     { return fakeMember }
func (*noop) IsLearner() bool        { return false }
func (*noop) Capable() bool          { return true }
func (n *noop) Rev() ids.Revision    { return ids.Revision(n.rev.Load()) }
func (n *noop) Hub() *watch.Hub      { return n.hub }
func (n *noop) CreateWatch(_ context.Context, ws *watch.Stream, r *pb.WatchCreateRequest) error {
	return ws.Create(r)
}

func (n *noop) Put(_ context.Context, r *pb.PutRequest, _ []byte) (*pb.PutResponse, error) {
	rev := ids.Revision(n.rev.Add(1))
	if string(r.Key) == "watched" {
		n.hub.Publish(rev, []watch.Event{{Key: r.Key, KV: benchKVs[0], Mod: rev}})
	}
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: int64(rev)}}, nil
}

func (n *noop) Range(context.Context, *pb.RangeRequest) (*mvcc.RangeResult, error) {
	return &mvcc.RangeResult{Revision: ids.Revision(n.rev.Load()), Count: 1, KVs: benchKVs}, nil
}

var benchKVs = func() [][]byte {
	b, err := proto.Marshal(&mvccpb.KeyValue{Key: make([]byte, 32), Value: make([]byte, 256), ModRevision: 1 << 20, CreateRevision: 1 << 19, Version: 9})
	if err != nil {
		panic(err)
	}
	return [][]byte{b}
}()

type noHistory struct{ n *noop }

func (h noHistory) Rev() ids.Revision      { return ids.Revision(h.n.rev.Load()) }
func (noHistory) CompactRev() ids.Revision { return 0 }
func (noHistory) Scan(from ids.Revision, _, _ int, _ func(watch.Event) error) (ids.Revision, error) {
	return from, nil
}
func (noHistory) PrevKV([]byte, ids.Revision) ([]byte, error) { return nil, nil }

// benchServer serves until standard input is closed. For each line read, it prints the CPU
// time used so far.
func benchServer() {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	n := new(noop)
	n.hub = watch.NewHub(noHistory{n}, clock.Real{}, watch.Options{})
	s := NewServer(Options{MaxRequestBytes: 1572864, MaxTxnOps: 128, ElectionTimeout: time.Second}, fit(n))
	go s.Serve(lis)
	if name := os.Getenv(benchEnv); strings.HasPrefix(name, "/") {
		f, err := os.Create(name)
		if err != nil {
			panic(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			panic(err)
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	fmt.Println(lis.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err)
		}
		fmt.Println(u.Utime.Nano() + u.Stime.Nano())
	}
}

type benchProcess struct {
	b    *testing.B
	addr string
	in   *os.File
	out  *bufio.Scanner
}

func startBench(b *testing.B) *benchProcess {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe)
	profile := os.Getenv("QUORATE_RPC_PROFILE") // a file for the server's CPU profile
	if profile == "" {
		profile = "1"
	}
	cmd.Env = append(os.Environ(), benchEnv+"="+profile)
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r.Close()
	p := &benchProcess{b: b, in: w, out: bufio.NewScanner(out)}
	p.addr = p.read()
	b.Cleanup(func() {
		w.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return p
}

func (p *benchProcess) read() string {
	if !p.out.Scan() {
		p.b.Fatal("the server is gone")
	}
	return p.out.Text()
}

// cpu returns the CPU time that the server has used so far.
func (p *benchProcess) cpu() (d time.Duration) {
	fmt.Fprintln(p.in)
	if _, err := fmt.Sscan(p.read(), &d); err != nil {
		p.b.Fatal(err)
	}
	return d
}

func (p *benchProcess) dial() *grpc.ClientConn {
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.b.Fatal(err)
	}
	p.b.Cleanup(func() { conn.Close() })
	return conn
}

// BenchmarkServer measures the server's cost of a request to a member that does nothing.
func BenchmarkServer(b *testing.B) {
	put := &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)}
	get := &pb.RangeRequest{Key: make([]byte, 32)}
	for _, c := range []struct {
		name           string
		clients, conns int
		call           func(context.Context, pb.KVClient) error
	}{
		{"put/clients=1", 1, 1, func(ctx context.Context, kv pb.KVClient) error { _, err := kv.Put(ctx, put); return err }},
		{"put/clients=100/conns=1", 100, 1, func(ctx context.Context, kv pb.KVClient) error { _, err := kv.Put(ctx, put); return err }},
		{"put/clients=100/conns=10", 100, 10, func(ctx context.Context, kv pb.KVClient) error { _, err := kv.Put(ctx, put); return err }},
		{"put/clients=100/conns=100", 100, 100, func(ctx context.Context, kv pb.KVClient) error { _, err := kv.Put(ctx, put); return err }},
		{"get/clients=100/conns=10", 100, 10, func(ctx context.Context, kv pb.KVClient) error { _, err := kv.Range(ctx, get); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := startBench(b)
			kvs := make([]pb.KVClient, c.conns)
			for i := range kvs {
				kvs[i] = pb.NewKVClient(p.dial())
				if err := c.call(b.Context(), kvs[i]); err != nil {
					b.Fatal(err)
				}
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			start := p.cpu()
			var wg sync.WaitGroup
			for i := range c.clients {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := c.call(b.Context(), kvs[i%c.conns]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(p.cpu()-start)/float64(b.N)/1000, "server-µs/op")
		})
	}
}

// BenchmarkFanOut measures the server's cost of delivering one event, from the put that causes
// it, to each of a thousand watchers.
func BenchmarkFanOut(b *testing.B) {
	const watchers = 1000
	for _, streams := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint("streams=", streams), func(b *testing.B) {
			p := startBench(b)
			conns := make([]*grpc.ClientConn, 10)
			for i := range conns {
				conns[i] = p.dial()
			}
			var got sync.WaitGroup
			for i := range streams {
				s, err := pb.NewWatchClient(conns[i%len(conns)]).Watch(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				for range watchers / streams {
					err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("watched")}}})
					if err != nil {
						b.Fatal(err)
					}
					if _, err := s.Recv(); err != nil {
						b.Fatal(err)
					}
				}
				go func() {
					for {
						r, err := s.Recv()
						if err != nil {
							return
						}
						got.Add(-len(r.Events))
					}
				}()
			}
			kv := pb.NewKVClient(conns[0])
			put := &pb.PutRequest{Key: []byte("watched"), Value: make([]byte, 300)}
			b.ResetTimer()
			start := p.cpu()
			for range b.N {
				got.Add(watchers)
				if _, err := kv.Put(b.Context(), put); err != nil {
					b.Fatal(err)
				}
				got.Wait()
			}
			b.ReportMetric(float64(p.cpu()-start)/float64(b.N)/watchers/1000, "server-µs/event")
		})
	}
}
