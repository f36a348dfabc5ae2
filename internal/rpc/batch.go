package rpc

import (
	"encoding/binary"
	"reflect"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"quorate/internal/metrics"
)

// batcher sends several messages of one stream to the transport at once.
//
// What a small message costs in gRPC is hardly its bytes: it is a frame of its
// own, the allocations around it, and a turn through the queue of the
// connection. Watchers of one stream that see the same event make a row of such
// messages, for which one frame does; measured, that halves the cost of an
// event. SendMsg cannot do it. The transport's stream below it can, but the
// last argument of its Write, which it does not use, has a type that is internal
// to gRPC. So Write is called by reflection, which pays from the second message
// on. With a gRPC that has no such method, messages go one by one.
type batcher struct {
	series *methodSeries
	write  reflect.Value    // Write of the transport's stream
	args   [3]reflect.Value // of which only the second changes

	p     piece
	buf   []byte // p as filled: messages, framed as gRPC frames them
	count int    // of messages
}

const (
	// batchBytes bounds a batch. It is the largest frame that gRPC sends.
	batchBytes = 16 << 10
	// batchPart is the size from which a message is better sent on its own.
	batchPart = 4 << 10
	// frameHead is the length of gRPC's prefix of a message: a zero, which means
	// that it is not compressed, and four bytes of length.
	frameHead = 5
)

// newBatcher returns nil if s cannot take batches.
func newBatcher(s *stream) *batcher {
	ts := grpc.ServerTransportStreamFromContext(s.Context())
	if ts == nil {
		return nil
	}
	if c, ok := ts.(interface{ SendCompress() string }); !ok || c.SendCompress() != "" {
		return nil
	}
	write := reflect.ValueOf(ts).MethodByName("Write")
	if !write.IsValid() {
		return nil
	}
	t := write.Type()
	if t.NumIn() != 3 || t.In(0) != reflect.TypeFor[[]byte]() || t.In(1) != reflect.TypeFor[mem.BufferSlice]() ||
		t.In(2).Kind() != reflect.Pointer || t.NumOut() != 1 || t.Out(0) != reflect.TypeFor[error]() {
		return nil
	}
	b := &batcher{series: s.series, write: write}
	b.args[0] = reflect.Zero(t.In(0)) // the prefix of a message, which is in the data here
	b.args[2] = reflect.Zero(t.In(2))
	return b
}

// next returns the buffer to which the caller appends a message, and then gives
// it to add.
func (b *batcher) next() []byte {
	if b.buf == nil {
		b.p = newPiece(batchBytes)
		b.buf = b.p.buf
	}
	return append(b.buf, make([]byte, frameHead)...)
}

func (b *batcher) add(buf []byte) {
	n := len(buf) - len(b.buf) - frameHead
	binary.BigEndian.PutUint32(buf[len(buf)-n-frameHead+1:], uint32(n))
	b.buf = buf
	b.count++
}

// fits reports whether a message of n bytes can be added.
func (b *batcher) fits(n int) bool { return len(b.buf)+frameHead+n <= batchBytes }

// flush sends what has been added.
func (b *batcher) flush() error {
	if b.count == 0 {
		return nil
	}
	data := b.p.only(b.buf)
	b.args[1] = reflect.ValueOf(data)
	out := b.write.Call(b.args[:])
	data.Free() // Write has taken a reference of its own
	err, _ := out[0].Interface().(error)
	b.series.sent.Add(float64(b.count))
	if err == nil {
		metrics.NetworkClientGRPCSentBytesTotal.Add(float64(len(b.buf) - b.count*frameHead))
	}
	b.p, b.buf, b.count = piece{}, nil, 0
	return err
}
