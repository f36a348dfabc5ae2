package observe

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/harness"
)

// collector receives spans as an OpenTelemetry collector does, and decodes the compared parts, without the types
// of that protocol.
type collector struct {
	addr string

	mu    sync.Mutex
	spans map[string]bool
	other string // what of the resource was seen last
}

func collect(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{addr: l.Addr().String(), spans: map[string]bool{}}
	s := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var req []byte
		if err := s.RecvMsg(&req); err != nil {
			return err
		}
		c.export(req)
		return s.SendMsg(&[]byte{})
	}))
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return c
}

// bytesCodec passes messages through as wire bytes.
type bytesCodec struct{}

func (bytesCodec) Name() string                       { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }

// fields calls f for each field of a message with its bytes, or with its number.
func fields(msg []byte, f func(num protowire.Number, val []byte, n uint64)) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(msg)
			if n < 0 {
				return
			}
			f(num, v, 0)
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(msg)
			if n < 0 {
				return
			}
			f(num, nil, v)
		}
		n = protowire.ConsumeFieldValue(num, typ, msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
	}
}

// attribute formats a key and its string, number or boolean.
func attribute(msg []byte) (key, value string) {
	fields(msg, func(num protowire.Number, val []byte, _ uint64) {
		if num == 1 {
			key = string(val)
			return
		}
		fields(val, func(num protowire.Number, val []byte, n uint64) {
			if num == 1 {
				value = string(val)
			} else {
				value = fmt.Sprint(int64(n))
			}
		})
	})
	return key, value
}

// ofTransport are attributes of a call that depend on its connection.
var ofTransport = []string{"client.address", "client.port", "server.address", "server.port", "network.peer.address", "network.peer.port", "network.local.address", "network.local.port"}

func (c *collector) export(req []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fields(req, func(_ protowire.Number, resourceSpans []byte, _ uint64) {
		fields(resourceSpans, func(num protowire.Number, part []byte, _ uint64) {
			if num == 1 {
				var attrs []string
				fields(part, func(_ protowire.Number, a []byte, _ uint64) {
					k, v := attribute(a)
					attrs = append(attrs, k+"="+v)
				})
				slices.Sort(attrs)
				c.other = strings.Join(attrs, " ")
				return
			}
			scope := ""
			fields(part, func(num protowire.Number, msg []byte, _ uint64) {
				switch num {
				case 1:
					fields(msg, func(num protowire.Number, v []byte, _ uint64) {
						if num == 1 {
							scope = string(v)
						}
					})
				case 2:
					c.spans[scope+" "+spanText(msg)] = true
				}
			})
		})
	})
}

// callersTrace is sent with the calls; the spans must belong to it.
const callersTrace = "0af7651916cd43dd8448eb211c80319c"

func spanText(msg []byte) string {
	var name, trace string
	var attrs []string
	fields(msg, func(num protowire.Number, v []byte, _ uint64) {
		switch num {
		case 1:
			trace = fmt.Sprintf("%x", v)
		case 5:
			name = string(v)
		case 9:
			if k, val := attribute(v); !slices.Contains(ofTransport, k) {
				attrs = append(attrs, k+"="+val)
			}
		}
	})
	slices.Sort(attrs)
	return fmt.Sprintf("%s in caller's trace: %v %q", name, trace == callersTrace, attrs)
}

func (c *collector) seen() ([]string, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sortedKeys(c.spans), c.other
}

// tracedCalls makes one request of each kind that has a span of its own, in a trace of the caller.
func tracedCalls(ctx context.Context, m *harness.Member) error {
	c, err := dial(m.ClientAddr())
	if err != nil {
		return err
	}
	defer c.close()
	ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+callersTrace+"-b7ad6b7169203331-01")
	if err := slowCalls(ctx, m); err != nil {
		return err
	}
	_, _ = c.kv.Put(ctx, &pb.PutRequest{Key: []byte("no lease"), Lease: 404})
	stream, err := c.kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z"), Limit: 5})
	if err != nil {
		return err
	}
	return drain(func() error { return second(stream.Recv()) })
}

// TestTracing compares the spans that both servers send: names, attributes, resource, and that
// they belong to the caller's trace. A watch has a span only here: etcd begins one and never ends
// it, so it is never sent.
func TestTracing(t *testing.T) {
	t.Parallel()
	bins := bothBinaries(t)
	var spans [2][]string
	var resources [2]string
	for i, bin := range bins {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		c := collect(t)
		m, err := harness.StartSingle(ctx, harness.Config{Binary: bin, Dir: t.TempDir(), Args: []string{
			"--log-level=error", "--enable-distributed-tracing", "--distributed-tracing-address=" + c.addr,
			"--distributed-tracing-instance-id=m0", "--distributed-tracing-service-name=store", "--distributed-tracing-sampling-rate=0",
		}})
		if err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
		t.Cleanup(func() { _ = m.Kill() })
		if err := tracedCalls(ctx, m); err != nil {
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
		if err := m.Stop(ctx); err != nil { // the last spans are sent then
			t.Fatalf("server %c: %v", 'a'+i, err)
		}
		for spans[i], resources[i] = c.seen(); len(spans[i]) == 0 && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			spans[i], resources[i] = c.seen()
		}
	}
	if resources[0] != resources[1] || !strings.Contains(resources[0], "service.instance.id=m0") {
		t.Errorf("resource: got %s, want %s", resources[1], resources[0])
	}
	for _, s := range missing(spans[0], spans[1]) {
		t.Errorf("missing: %s", s)
	}
	for _, s := range missing(spans[1], spans[0]) {
		t.Errorf("etcd does not send: %s", s)
	}
	if len(spans[0]) < 10 {
		t.Errorf("etcd has sent only %d kinds of spans", len(spans[0]))
	}
}
