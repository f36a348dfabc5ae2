package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/dustin/go-humanize"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/transport/peerapi"
)

// accept reports whether to accept requests of the sender; if not, it writes the
// response.
func (t *Transport) accept(w http.ResponseWriter, r *http.Request, method string) bool {
	err := t.self.Accept(w, r, method)
	switch {
	case errors.Is(err, peerapi.ErrIncompatible):
		t.warn(t.lg, "failed version compatibility check", t.self.LogFields(r)...)
	case errors.Is(err, peerapi.ErrOtherCluster):
		t.warn(t.lg, "request cluster ID mismatch", t.self.LogFields(r)...)
	}
	return err == nil
}

func (t *Transport) learnSender(from peerapi.From) {
	if from.ID != 0 {
		t.learn(from.ID, from)
		t.learnVersion(t.table.Load().peers[from.ID], from)
	}
}

// learnVersion records the release of a peer; p may be nil.
func (t *Transport) learnVersion(p *peer, from peerapi.From) {
	if p != nil && from.Version.Decided() {
		p.version.Store(&from.Version)
	}
}

// learn makes an unknown sender of a request reachable: a member that has
// fallen behind must be able to answer members that it does not know yet.
func (t *Transport) learn(id ids.Member, from peerapi.From) {
	if len(from.PeerURLs) > 0 && !t.cfg.Host.IsRemoved(id) {
		t.AddRemote(id, from.PeerURLs)
	}
}

// ServeMessage receives one message.
func (t *Transport) ServeMessage(w http.ResponseWriter, r *http.Request) {
	if !t.accept(w, r, http.MethodPost) {
		return
	}
	sender := peerapi.FromHeader(r.Header)
	t.learnSender(sender)
	from := t.senderLabel(sender)
	refuse := func(why peerapi.Refusal) {
		metrics.NetworkPeerReceivedFailuresTotal.WithLabelValues(from).Inc()
		why.Write(w)
	}
	b, err := io.ReadAll(io.LimitReader(patientBody(w, r), maxMessageBytes+1))
	if err != nil || len(b) > maxMessageBytes {
		refuse(peerapi.MessageUnread)
		return
	}
	m, err := decodeMessage(b)
	if err != nil {
		refuse(peerapi.MessageMalformed)
		return
	}
	metrics.NetworkPeerReceivedBytesTotal.WithLabelValues(from).Add(float64(len(b)))
	switch m.GetType() {
	case raftpb.MsgSnap:
		err = errors.New("transport: snapshot message without a database")
	case raftpb.MsgHeartbeat:
		// Anyone can have sent it. A commit index from the leader beyond the log of this
		// member makes raft panic, so accept commit indexes only on streams, which this
		// member has opened to the leader's address. The commit index also comes with
		// entries.
		m.Commit = nil
		fallthrough
	default:
		if err = t.deliver(m); err == nil {
			t.cfg.Host.Step(m.GetType() == raftpb.MsgProp)
		}
	}
	if err != nil {
		t.warn(t.lg, "failed to process Raft message", zap.Stringer("remote-peer-id", sender.ID), zap.Error(err))
		peerapi.MessageNotProcessed.Write(w)
		return
	}
	peerapi.Taken(w)
}

// senderLabel is the sender as a metric label: the id of a known member, or
// one label for all others, so that requests cannot create an unbounded
// number of series.
func (t *Transport) senderLabel(from peerapi.From) string {
	if table := t.table.Load(); table.peers[from.ID] != nil || table.remotes[from.ID] != nil {
		return from.ID.String()
	}
	return unknownSender
}

// unknownSender is etcd's label for a snapshot from an unknown sender.
const unknownSender = "UNKNOWN_SNAPSHOT_SENDER"

// ServeStream opens a stream to the member that requests it.
func (t *Transport) ServeStream(w http.ResponseWriter, r *http.Request) {
	if !t.accept(w, r, http.MethodGet) {
		return
	}
	kind, from, err := peerapi.StreamOf(r)
	var malformed peerapi.Refusal
	if errors.As(err, &malformed) {
		malformed.Write(w)
		return
	}
	sender := peerapi.FromHeader(r.Header)
	lg := t.lg.With(zap.Stringer("remote-peer-id-stream-handler", t.cfg.ID), zap.Stringer("remote-peer-id-from", from),
		zap.Stringer("cluster-id", t.cfg.ClusterID))
	if t.cfg.Host.IsRemoved(from) {
		t.warn(lg, "rejected stream from remote peer because it was removed")
		peerapi.StreamRemoved.Write(w)
		return
	}
	p := t.table.Load().peers[from]
	if p == nil {
		t.learn(from, sender)
		t.warn(lg, "failed to find remote peer in cluster")
		peerapi.StreamUnknown.Write(w)
		return
	}
	if sender.For != t.cfg.ID.String() {
		t.warn(lg, "ignored streaming request; ID mismatch", zap.String("remote-peer-id-header", sender.For))
		peerapi.StreamMisdirected.Write(w)
		return
	}
	t.learnVersion(p, sender)
	t.openStream(w, p, kind)
}

// openStream hijacks the connection from the HTTP server and turns it into
// a link, which answers the request.
func (t *Transport) openStream(w http.ResponseWriter, p *peer, kind peerapi.Stream) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.lg.Warn("cannot open a stream on this connection", zap.Error(err))
		peerapi.StreamHTTP2.Write(w)
		return
	}
	if err := conn.SetDeadline(time.Time{}); err != nil || !p.attach(newLink(p, kind, conn, t.self.StreamHeader())) {
		conn.Close()
	}
}

// ServeSnapshot receives a snapshot.
func (t *Transport) ServeSnapshot(w http.ResponseWriter, r *http.Request) {
	start := clock.Now()
	if !t.accept(w, r, http.MethodPost) {
		metrics.NetworkSnapshotReceiveFailures.WithLabelValues(unknownSender).Inc()
		return
	}
	sender := peerapi.FromHeader(r.Header)
	t.learnSender(sender)
	from := t.senderLabel(sender)
	refuse := func(why peerapi.Refusal) {
		metrics.NetworkSnapshotReceiveFailures.WithLabelValues(from).Inc()
		t.lg.Warn("failed to save incoming database snapshot", zap.String("remote-snapshot-sender-id", from), zap.Error(why))
		why.Write(w)
	}
	body := &countingReader{r: patientBody(w, r)}
	m, _, err := readPrefixed(body, maxEnvelopeBytes)
	received := metrics.NetworkPeerReceivedBytesTotal.WithLabelValues(from)
	defer func() { received.Add(float64(body.n)) }()
	if err != nil {
		metrics.NetworkPeerReceivedFailuresTotal.WithLabelValues(from).Inc()
		refuse(peerapi.SnapshotMalformed(err))
		return
	}
	if m.GetType() != raftpb.MsgSnap {
		refuse(peerapi.SnapshotWrongType)
		return
	}
	inflight := metrics.NetworkSnapshotReceiveInflightsTotal.WithLabelValues(from)
	inflight.Inc()
	defer inflight.Dec()
	lg := t.lg.With(zap.String("remote-snapshot-sender-id", from), zap.Uint64("incoming-snapshot-index", m.GetSnapshot().GetMetadata().GetIndex()))
	lg.Info("receiving database snapshot", zap.Int64("incoming-snapshot-message-size-bytes", body.n),
		zap.String("incoming-snapshot-message-size", humanize.Bytes(uint64(body.n))))
	if err := t.receiveSnapshot(m, body); err != nil {
		why := peerapi.SnapshotNotStored(err)
		if errors.Is(err, ErrSnapshotNotProcessed) {
			why = peerapi.SnapshotNotProcessed(err)
		}
		refuse(why)
		return
	}
	peerapi.Taken(w)
	metrics.NetworkSnapshotReceiveSuccess.WithLabelValues(from).Inc()
	metrics.NetworkSnapshotReceiveTotalDurationSeconds.WithLabelValues(from).Observe(clock.Since(start).Seconds())
	lg.Info("received and saved database snapshot", zap.Int64("incoming-snapshot-size-bytes", body.n),
		zap.String("incoming-snapshot-size", humanize.Bytes(uint64(body.n))), zap.Duration("download-took", clock.Since(start)))
}

// receiveSnapshot checks the message as deliver does and passes it to the Host.
func (t *Transport) receiveSnapshot(m *raftpb.Message, body io.Reader) error {
	to, from := ids.Member(m.GetTo()), ids.Member(m.GetFrom())
	if to != t.cfg.ID {
		return fmt.Errorf("%w: for member %s", ErrSnapshotNotProcessed, to)
	}
	if t.cfg.Host.IsRemoved(from) {
		return fmt.Errorf("%w: from removed member %s", ErrSnapshotNotProcessed, from)
	}
	// Do not use the context of the request: net/http cancels it when a
	// background read of the connection times out while the database is being
	// synced.
	return t.cfg.Host.ReceiveSnapshot(t.ctx, m, body)
}

type countingReader struct {
	r io.Reader
	n int64
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.n += int64(n)
	return n, err
}

// patientBody returns the body of a request with the read timeout applied to
// each read: a transfer may take hours as long as it makes progress.
func patientBody(w http.ResponseWriter, r *http.Request) io.Reader {
	return &patientReader{r: r.Body, rc: http.NewResponseController(w)}
}

type patientReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (p *patientReader) Read(b []byte) (int, error) {
	// Ignore the error: only a server without a network has no deadlines.
	_ = p.rc.SetReadDeadline(clock.Now().Add(readTimeout))
	n, err := p.r.Read(b)
	if err != nil {
		// The server now watches the connection for its end, without a deadline.
		_ = p.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// HTTPServer returns a server for the peer port with the limits of the
// protocol. It hands over the connections of streams, which Stop closes.
func HTTPServer(h http.Handler, lg *zap.Logger) *http.Server {
	if lg == nil {
		lg = zap.NewNop()
	}
	return &http.Server{
		Handler: h,
		// The body handlers extend this as long as bytes arrive.
		ReadTimeout:       5 * time.Minute,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          zap.NewStdLog(lg),
		// No HTTP/2: streams take over the connection.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
}
