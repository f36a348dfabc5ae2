package h2

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// prefixLen is the length of gRPC's message prefix: a compression flag and four bytes
// of length.
const prefixLen = 5

// message is a message as received.
type message struct {
	data       []byte
	compressed bool
}

// inbox assembles the messages of a stream. feed and end are called by the goroutine
// that reads the connection; the other methods by the handler's.
type inbox struct {
	max    int // largest message, in bytes
	prefix [prefixLen]byte
	have   int  // bytes of prefix received
	coming bool // the prefix is complete, its message is not
	want   int  // length of that message
	cur    message

	mu    sync.Mutex
	queue []message
	first [1]message // initial storage of queue: most calls have one message
	ended error      // what follows the queue: io.EOF or an error; nil: more may come
	wake  chan struct{}
	serve func() // if set, started when there is something to take and it is not running
	runs  bool   // serve is running
	// answer, if set, is offered a message before it is queued while next waits. It returns
	// true if it has dealt with it.
	answer  func(data []byte) bool
	waiting bool // next waits, so whoever takes messages has dealt with all earlier ones
}

// feed adds the payload of a DATA frame. It calls begin for each message that starts in
// p and does not end in it, with the number of bytes that are missing.
func (b *inbox) feed(p []byte, begin func(missing int)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		return
	}
	for len(p) > 0 {
		if !b.coming {
			n := copy(b.prefix[b.have:], p)
			b.have += n
			p = p[n:]
			if b.have < prefixLen || !b.start(len(p), begin) {
				return
			}
		}
		n := min(len(p), b.want-len(b.cur.data))
		b.cur.data = append(b.cur.data, p[:n]...)
		p = p[n:]
		b.complete()
	}
	if b.coming {
		b.complete()
	}
}

// put adds a whole message, which the inbox owns.
func (b *inbox) put(data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		return
	}
	if len(data) > b.max {
		b.endLocked(tooLarge(uint32(len(data)), b.max))
		return
	}
	b.add(message{data: data})
}

func tooLarge(n uint32, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", n, limit)
}

// firstAlloc limits what is allocated for a message before its bytes arrive.
const firstAlloc = 64 << 10

// start validates a complete prefix; atHand is the number of bytes that follow it.
func (b *inbox) start(atHand int, begin func(missing int)) bool {
	n := binary.BigEndian.Uint32(b.prefix[1:])
	if int64(n) > int64(b.max) {
		b.endLocked(tooLarge(n, b.max))
		return false
	}
	if b.prefix[0] > 1 {
		b.endLocked(status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", b.prefix[0]))
		return false
	}
	b.coming, b.want, b.have = true, int(n), 0
	b.cur = message{compressed: b.prefix[0] == 1}
	if n > 0 {
		b.cur.data = make([]byte, 0, min(int(n), max(atHand, firstAlloc)))
	}
	if int(n) > atHand {
		begin(int(n) - atHand)
	}
	b.complete()
	return true
}

func (b *inbox) complete() {
	if b.coming && len(b.cur.data) == b.want {
		m := b.cur
		b.coming, b.cur = false, message{}
		b.add(m)
	}
}

// add queues a complete message, unless it can be answered at once.
func (b *inbox) add(m message) {
	if b.answer != nil && b.waiting && len(b.queue) == 0 && !m.compressed && b.answer(m.data) {
		return
	}
	if b.queue == nil {
		b.queue = b.first[:0]
	}
	b.queue = append(b.queue, m)
	b.signal()
}

// end records that no more messages follow; err is io.EOF after a half-close.
func (b *inbox) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == io.EOF && (b.coming || b.have > 0) {
		err = status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	}
	b.endLocked(err)
}

func (b *inbox) endLocked(err error) {
	if b.ended == nil {
		b.ended = err
		b.signal()
	}
}

func (b *inbox) signal() {
	if b.serve != nil && !b.runs {
		b.runs = true
		go b.serve()
	}
	if b.wake != nil {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// next waits for a message. It returns reason() once cancelled is closed.
func (b *inbox) next(cancelled <-chan struct{}, reason func() error) (message, error) {
	for {
		b.mu.Lock()
		b.waiting = false
		if len(b.queue) > 0 {
			m := b.queue[0]
			b.queue[0] = message{}
			if b.queue = b.queue[1:]; len(b.queue) == 0 {
				b.queue = nil
			}
			b.mu.Unlock()
			return m, nil
		}
		err := b.ended
		if err == nil && b.wake == nil {
			b.wake = make(chan struct{}, 1)
		}
		wake := b.wake
		b.waiting = err == nil
		b.mu.Unlock()
		if err != nil {
			return message{}, err
		}
		select {
		case <-wake:
		case <-cancelled:
			b.mu.Lock()
			b.waiting = false
			b.mu.Unlock()
			return message{}, reason()
		}
	}
}

// offer sets answer, which is called by the goroutine that reads the connection. It must
// not block, nor use the inbox.
func (b *inbox) offer(answer func(data []byte) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// onReady makes the inbox start serve whenever there is something to take. serve must
// run until more returns false.
func (b *inbox) onReady(serve func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serve = serve
	if len(b.queue) > 0 || b.ended != nil {
		b.signal()
	}
}

// more reports whether next would return at once. If not, the running serve must
// return; it will be started again.
func (b *inbox) more() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runs = len(b.queue) > 0 || b.ended != nil
	return b.runs
}

// only returns the message of a call that has exactly one, after the client has
// half-closed the stream.
func (b *inbox) only() (message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case len(b.queue) > 1:
		return message{}, errManyRequests
	case b.ended != io.EOF:
		return message{}, b.ended
	case len(b.queue) == 0:
		return message{}, errNoRequest
	}
	m := b.queue[0]
	b.queue[0] = message{}
	b.queue = nil
	return m, nil
}

// over reports whether further input is ignored.
func (b *inbox) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended != nil
}

// broken returns the error that already dooms a unary call, whatever else arrives.
func (b *inbox) broken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended != nil && b.ended != io.EOF:
		return b.ended
	case len(b.queue) > 1:
		return errManyRequests
	}
	return nil
}

var (
	errNoRequest    = status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC")
	errManyRequests = status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC")
)

// open returns the decompressed message, which the caller owns.
func (m message) open(name string, limit int) ([]byte, error) {
	if !m.compressed {
		return m.data, nil
	}
	if name == "" || name == encoding.Identity {
		return nil, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	c := encoding.GetCompressor(name)
	if c == nil {
		return nil, noDecompressor(name)
	}
	return decompress(c, m.data, limit)
}

func noDecompressor(name string) error {
	return status.Errorf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", name)
}

// decompress decompresses at most limit bytes.
func decompress(c encoding.Compressor, data []byte, limit int) ([]byte, error) {
	r, err := c.Decompress(bytes.NewReader(data))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to decompress the message: %v", err)
	}
	if closer, ok := r.(io.Closer); ok {
		defer closer.Close()
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to read decompressed data: %v", err)
	}
	if len(out) > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: received message after decompression larger than max %d", limit)
	}
	return out, nil
}
