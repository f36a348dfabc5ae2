package h2

import "time"

// What a connection may hold, and what happens at the bound.
const (
	// frameBytes is the largest frame that is read or written, the least that
	// HTTP/2 lets an endpoint take. A longer one ends the connection.
	frameBytes = 16 << 10
	// streamWindow is what a client may send on a stream before the handler has
	// taken any of it. A message that is longer gets a window of its own length.
	streamWindow = 64<<10 - 1
	// connWindow is what a client may send on a connection before it is read.
	connWindow = 1 << 20
	// extendedBytes is how much all messages of a connection may get beyond their
	// stream's window at a time. The next message waits for one of them.
	extendedBytes = 16 << 20
	// heldBytes is from where on the unread bytes of a connection make it refuse
	// new streams.
	heldBytes = 64 << 20
	// outBytes is from where on a sender of data waits for the socket.
	outBytes = 64 << 10
	// controlBytes bounds the answers to SETTINGS, PING and the like that wait for
	// the socket. The connection is not read any further until they have gone.
	controlBytes = 64 << 10
	// emptyFrames is how many DATA frames in a row may carry nothing.
	emptyFrames = 1000
	// pingStrikes is how many pings may come too early.
	pingStrikes = 2
	// unboundedStreams stands for the calls of one connection without a bound.
	unboundedStreams = 1<<32 - 1
)

const (
	// prefaceTimeout is how long a connection may take to say that it speaks
	// HTTP/2.
	prefaceTimeout = 2 * time.Minute
	// drainTimeout is how long a client may take to acknowledge that no new
	// streams are welcome.
	drainTimeout = 5 * time.Second
	// lingerTimeout is how long a connection that ends with an error is still
	// read, so that the client gets to see the error.
	lingerTimeout = time.Second
	// quietPing is the least time between two pings of a client without calls.
	quietPing = 2 * time.Hour

	defaultKeepaliveTime    = 2 * time.Hour
	defaultKeepaliveTimeout = 20 * time.Second
	defaultKeepaliveMinTime = 5 * time.Minute
)
