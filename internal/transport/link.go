package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/clock"
	"quorate/internal/transport/peerapi"

	"go.uber.org/zap"
)

const (
	// chunkHeader is the space at the start of a buffer for the size line of an
	// HTTP chunk: eight hex digits and the line end.
	chunkHeader = 10
	// flushBytes is the size at which a batch is written although more messages
	// are waiting.
	flushBytes = 256 << 10
	// keepBytes is the largest buffer that is reused for the next batch.
	keepBytes = 1 << 20
	// closeGrace is the time in which a closing link may finish its last write.
	closeGrace = 500 * time.Millisecond
)

var errPeerClosed = errors.New("transport: the peer closed the stream")

// link is a stream that this member writes: a connection that the peer opened
// with a GET whose response never ends. A link writes the HTTP chunks itself,
// size line, content and line end in one write, so that a batch of messages
// costs one system call here and one wake-up at the peer.
type link struct {
	p      *peer
	kind   peerapi.Stream
	conn   net.Conn
	header []byte // status line and headers of the response, written first
	enc    encoder
	q      *queue
	buf    []byte

	once sync.Once
	quit chan struct{}
	last atomic.Bool // no other stream follows: write pending messages before closing
}

func newLink(p *peer, kind peerapi.Stream, conn net.Conn, header []byte) *link {
	return &link{p: p, kind: kind, conn: conn, header: header, enc: newEncoder(kind),
		q: newQueue(streamQueue), quit: make(chan struct{})}
}

// close asks run to return, without waiting. A peer that does not read delays
// that by up to closeGrace.
func (l *link) close() {
	l.once.Do(func() {
		close(l.quit)
		clock.AfterFunc(closeGrace, func() { l.conn.Close() })
	})
}

// watch returns a channel that is closed when the peer closes the connection.
// Without it, only the second write after that would fail, and messages
// written until then would be lost without a report.
func (l *link) watch() <-chan struct{} {
	gone := make(chan struct{})
	l.p.wg.Go(func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, l.conn) // a peer sends nothing more here
	})
	return gone
}

func (l *link) run() {
	l.p.status.activate()
	what := zap.String("stream-writer-type", streamLabel(l.kind))
	l.p.lg.Info("established TCP streaming connection with remote peer", what)
	err := l.writeAll()
	l.p.links[l.kind].CompareAndSwap(l, nil)
	taken, waiting := l.q.close()
	if taken > 0 { // these may have been written and received
		l.p.sentFailures.Add(float64(taken))
		l.p.t.reports.drop(l.p.id, taken)
	}
	for _, m := range waiting {
		l.p.unsent(m)
	}
	switch {
	case err != nil:
		l.p.status.deactivate("write "+l.kind.String()+" stream", err)
		l.p.lg.Warn("lost TCP streaming connection with remote peer", what, l.p.called(), zap.Error(err))
	case l.p.isStopped():
		l.finish()
		l.p.lg.Warn("closed TCP streaming connection with remote peer", what)
		l.p.lg.Info("stopped TCP streaming connection with remote peer", what)
	default: // replaced by another link
		l.finish()
		l.p.lg.Warn("closed TCP streaming connection with remote peer", what)
	}
	l.conn.Close()
}

// writeAll writes batches and heartbeats until the link is closed (nil) or a
// write fails.
func (l *link) writeAll() error {
	if err := l.write(l.header); err != nil {
		return err
	}
	// Send the first heartbeat at once: it shows the peer that the stream
	// works.
	if err := l.writeHeartbeat(); err != nil {
		return err
	}
	gone := l.watch()
	tick := clock.NewTicker(clock.System, heartbeatPeriod)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-l.q.ready:
			err = l.writeBatch()
		case <-tick.C:
			err = l.writeHeartbeat()
		case <-gone:
			err = errPeerClosed
		case <-l.quit:
			if l.last.Load() {
				_ = l.writeBatch() // lost messages stay counted as taken
			}
			return nil
		}
		if err != nil {
			select {
			case <-l.quit:
				return nil // closed on purpose, possibly during a write
			default:
				return err
			}
		}
	}
}

func (l *link) writeHeartbeat() error {
	return l.flush(l.enc.heartbeat(l.begin()))
}

// writeBatch writes all waiting messages. If it fails, the queue still counts
// them as taken, and run reports them as lost.
func (l *link) writeBatch() error {
	batch := l.q.take()
	began := clock.Now()
	b := l.begin()
	var err error
	for _, m := range batch {
		if b, err = l.enc.message(b, m); err != nil {
			// The frame is not in the buffer. A message that cannot be encoded is our
			// bug, not an error of the stream.
			l.p.dropped(m)
			l.p.lg.Error("cannot encode a raft message", zap.Stringer("type", m.GetType()), zap.Error(err))
			continue
		}
		if len(b) >= flushBytes {
			if err := l.flush(b); err != nil {
				return err
			}
			b = l.begin()
		}
	}
	if err := l.flush(b); err != nil {
		return err
	}
	if l.kind == peerapi.StreamMsgApp {
		l.p.sendings.succeeded(len(batch), clock.Since(began))
	}
	l.q.done(batch)
	return nil
}

// begin returns the empty buffer, with space for the size line.
func (l *link) begin() []byte {
	if cap(l.buf) < chunkHeader {
		l.buf = make([]byte, chunkHeader, 4096)
	}
	return l.buf[:chunkHeader]
}

// flush writes b, which begin returned, as one chunk.
func (l *link) flush(b []byte) error {
	l.buf = b[:0]
	if cap(b) > keepBytes {
		l.buf = nil
	}
	n := len(b) - chunkHeader
	if n == 0 {
		return nil
	}
	putChunkHeader(b[:chunkHeader], n)
	b = append(b, '\r', '\n')
	if cap(b) <= keepBytes {
		l.buf = b[:0]
	}
	if err := l.write(b); err != nil {
		return err
	}
	l.p.sentBytes.Add(float64(n))
	return nil
}

// putChunkHeader writes the size line of a chunk. Leading zeros are legal.
func putChunkHeader(b []byte, n int) {
	const digits = "0123456789abcdef"
	for i := 7; i >= 0; i-- {
		b[i] = digits[n&15]
		n >>= 4
	}
	b[8], b[9] = '\r', '\n'
}

// write writes b in pieces, each with the full write timeout.
func (l *link) write(b []byte) error {
	for len(b) > 0 {
		piece := b[:min(len(b), flushBytes)]
		if err := l.conn.SetWriteDeadline(clock.Now().Add(l.p.t.cfg.WriteTimeout)); err != nil {
			return fmt.Errorf("set write deadline: %w", err)
		}
		if _, err := l.conn.Write(piece); err != nil {
			return err
		}
		b = b[len(piece):]
	}
	return nil
}

// finish ends the response properly, so that the peer sees the end of the
// stream and no error.
func (l *link) finish() {
	if err := l.conn.SetWriteDeadline(clock.Now().Add(closeGrace)); err == nil {
		_, _ = l.conn.Write([]byte("0\r\n\r\n")) // ignore the error: the connection is closed next
	}
}
