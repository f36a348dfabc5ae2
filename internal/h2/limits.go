package h2

import "time"

// The bounds of a connection, and what happens at each.
const (
	// frameBytes is the largest frame that is read or written: the minimum that HTTP/2
	// requires. A larger frame ends the connection.
	frameBytes = 16 << 10
	// streamWindow is what a client may send on a stream before the handler takes
	// anything. A longer message gets a window of its own length.
	streamWindow = 64<<10 - 1
	// connWindow is what a client may send on a connection before it is read.
	connWindow = 1 << 20
	// extendedBytes limits the window that all messages of a connection together get
	// beyond their streams' windows. The next message waits for one of them.
	extendedBytes = 16 << 20
	// heldBytes is the number of unread bytes at which a connection refuses new
	// streams.
	heldBytes = 64 << 20
	// outBytes is the size of the write buffer at which senders of data block.
	outBytes = 64 << 10
	// controlBytes limits the pending answers to SETTINGS, PING and the like. The
	// connection is not read until they are written.
	controlBytes = 64 << 10
	// emptyFrames is the number of consecutive empty DATA frames that is tolerated.
	emptyFrames = 1000
	// pingStrikes is the number of early pings that is tolerated.
	pingStrikes = 2
	// unboundedStreams means no limit on concurrent streams.
	unboundedStreams = 1<<32 - 1
)

const (
	// prefaceTimeout limits the TLS handshake, the preface and the first SETTINGS
	// together.
	prefaceTimeout = 2 * time.Minute
	// drainTimeout limits the wait for the client to acknowledge the first GOAWAY.
	drainTimeout = 5 * time.Second
	// lingerTimeout is how long a connection that failed is still read, so that the
	// client receives the GOAWAY.
	lingerTimeout = time.Second
	// quietPing is the minimum interval between pings of a client without open streams.
	quietPing = 2 * time.Hour

	defaultKeepaliveTime    = 2 * time.Hour
	defaultKeepaliveTimeout = 20 * time.Second
	defaultKeepaliveMinTime = 5 * time.Minute
)
