package transport

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/membership"
	"quorate/internal/metrics"
)

// Handler returns the handler of /raft and everything below it.
func (t *Transport) Handler() http.Handler { return http.HandlerFunc(t.serve) }

func (t *Transport) serve(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case path == pathRaft:
		t.serveMessage(w, r)
	case path == pathSnapshot:
		t.serveSnapshot(w, r)
	case path == pathProbing:
		serveProbing(w)
	case strings.HasPrefix(path, pathStream+"/"):
		t.serveStream(w, r)
	default:
		http.NotFound(w, r)
	}
}

// accept checks the method and the sender of a raft request and answers it if
// it is refused. The cluster id is told in any case.
func (t *Transport) accept(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method != method {
		w.Header().Set("Allow", method)
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return false
	}
	w.Header().Set(headerCluster, membership.FormatID(t.cfg.ClusterID))
	if method == http.MethodGet {
		w.Header().Set(headerVersion, t.cfg.Version)
	}
	if err := t.checkHeaders(r.Header); err != nil {
		what := "failed version compatibility check"
		if errors.Is(err, errClusterMismatch) {
			what = "request cluster ID mismatch"
		}
		t.warn(t.lg, what, zap.String("local-member-cluster-id", membership.FormatID(t.cfg.ClusterID)),
			zap.String("local-member-server-version", t.cfg.Version),
			zap.String("local-member-server-minimum-cluster-version", membership.MinClusterVersion.String()),
			zap.String("remote-peer-server-name", r.Header.Get(headerFrom)),
			zap.String("remote-peer-server-version", r.Header.Get(headerVersion)),
			zap.String("remote-peer-server-minimum-cluster-version", r.Header.Get(headerMinVersion)),
			zap.String("remote-peer-cluster-id", r.Header.Get(headerCluster)), zap.String("remote-address", r.RemoteAddr))
		http.Error(w, err.Error(), http.StatusPreconditionFailed)
		return false
	}
	return true
}

func (t *Transport) learnSender(h http.Header) {
	if from, err := membership.ParseID(h.Get(headerFrom)); err == nil {
		t.learn(from, h)
		t.learnVersion(t.table.Load().peers[from], h)
	}
}

// learnVersion takes note of the release of a peer, if it is one.
func (t *Transport) learnVersion(p *peer, h http.Header) {
	if v, err := headerVersionOf(h, headerVersion); p != nil && err == nil {
		p.version.Store(&v)
	}
}

// learn makes the sender of a request reachable if it is not known yet: a
// member that fell behind must be able to answer one that it has not heard of.
func (t *Transport) learn(id uint64, h http.Header) {
	if urls := h.Get(headerPeerURLs); urls != "" && !t.cfg.Host.IsRemoved(id) {
		t.AddRemote(id, strings.Split(urls, ","))
	}
}

func (t *Transport) serveMessage(w http.ResponseWriter, r *http.Request) {
	if !t.accept(w, r, http.MethodPost) {
		return
	}
	t.learnSender(r.Header)
	from := t.senderLabel(r.Header)
	refuse := func(text string) {
		metrics.NetworkPeerReceivedFailuresTotal.WithLabelValues(from).Inc()
		http.Error(w, text, http.StatusBadRequest)
	}
	b, err := io.ReadAll(io.LimitReader(patientBody(w, r), maxMessageBytes+1))
	if err != nil || len(b) > maxMessageBytes {
		refuse("error reading raft message")
		return
	}
	m, err := decodeMessage(b)
	if err != nil {
		refuse("error unmarshalling raft message")
		return
	}
	metrics.NetworkPeerReceivedBytesTotal.WithLabelValues(from).Add(float64(len(b)))
	switch m.GetType() {
	case raftpb.MsgSnap:
		err = errors.New("transport: snapshot message without a database")
	case raftpb.MsgHeartbeat:
		// Anybody can have sent it. A commit index beyond the log of this member, from
		// its leader, is the end of the member; that counts on a stream alone, which the
		// member has opened to the leader's address. The index comes with entries, too.
		m.Commit = nil
		fallthrough
	default:
		err = t.deliver(m)
	}
	if err != nil {
		t.warn(t.lg, "failed to process Raft message", zap.String("remote-peer-id", r.Header.Get(headerFrom)), zap.Error(err))
		// Never 403 here: a member that reads it takes itself for removed.
		w.Header().Set("Connection", "close")
		http.Error(w, "error processing raft message", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// senderLabel is the sender as a metric label: the id of somebody we know, or
// one label for all others, so that requests cannot make series at will.
func (t *Transport) senderLabel(h http.Header) string {
	id, err := membership.ParseID(h.Get(headerFrom))
	if table := t.table.Load(); err == nil && (table.peers[id] != nil || table.remotes[id] != nil) {
		return membership.FormatID(id)
	}
	return unknownSender
}

// unknownSender is etcd's label for a snapshot whose sender is not known.
const unknownSender = "UNKNOWN_SNAPSHOT_SENDER"

func (t *Transport) serveStream(w http.ResponseWriter, r *http.Request) {
	if !t.accept(w, r, http.MethodGet) {
		return
	}
	name, fromText, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, pathStream+"/"), "/")
	var kind streamKind
	switch name {
	case streamMsgApp:
		kind = kindMsgApp
	case streamMessage:
		kind = kindMessage
	default:
		http.Error(w, "invalid path", http.StatusNotFound)
		return
	}
	from, err := membership.ParseID(fromText)
	if err != nil {
		http.Error(w, "invalid from", http.StatusNotFound)
		return
	}
	lg := t.lg.With(zap.String("remote-peer-id-stream-handler", membership.FormatID(t.cfg.ID)), zap.String("remote-peer-id-from", membership.FormatID(from)),
		zap.String("cluster-id", membership.FormatID(t.cfg.ClusterID)))
	if t.cfg.Host.IsRemoved(from) {
		t.warn(lg, "rejected stream from remote peer because it was removed")
		http.Error(w, "removed member", http.StatusGone)
		return
	}
	p := t.table.Load().peers[from]
	if p == nil {
		t.learn(from, r.Header)
		t.warn(lg, "failed to find remote peer in cluster")
		http.Error(w, "error sender not found", http.StatusNotFound)
		return
	}
	if to := r.Header.Get(headerTo); to != membership.FormatID(t.cfg.ID) {
		t.warn(lg, "ignored streaming request; ID mismatch", zap.String("remote-peer-id-header", to))
		http.Error(w, "to field mismatch", http.StatusPreconditionFailed)
		return
	}
	t.learnVersion(p, r.Header)
	t.openStream(w, p, kind)
}

// openStream takes the connection over from the HTTP server and makes it a
// link, which answers the request.
func (t *Transport) openStream(w http.ResponseWriter, p *peer, kind streamKind) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.lg.Warn("cannot open a stream on this connection", zap.Error(err))
		http.Error(w, "streams need HTTP/1.1", http.StatusInternalServerError)
		return
	}
	header := fmt.Sprintf("HTTP/1.1 200 OK\r\n%s: %s\r\n%s: %s\r\nDate: %s\r\nTransfer-Encoding: chunked\r\n\r\n",
		headerCluster, membership.FormatID(t.cfg.ClusterID), headerVersion, t.cfg.Version, clock.Now().UTC().Format(http.TimeFormat))
	if err := conn.SetDeadline(time.Time{}); err != nil || !p.attach(newLink(p, kind, conn, []byte(header))) {
		conn.Close()
	}
}

func (t *Transport) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	start := clock.Now()
	failed := func(label, text string, code int) {
		metrics.NetworkSnapshotReceiveFailures.WithLabelValues(label).Inc()
		if text != "" {
			t.lg.Warn("failed to save incoming database snapshot", zap.String("remote-snapshot-sender-id", label), zap.String("error", text))
			http.Error(w, text, code)
		}
	}
	if !t.accept(w, r, http.MethodPost) {
		failed(unknownSender, "", 0)
		return
	}
	t.learnSender(r.Header)
	from := t.senderLabel(r.Header)
	body := &countingReader{r: patientBody(w, r)}
	m, _, err := readPrefixed(body, maxEnvelopeBytes)
	received := metrics.NetworkPeerReceivedBytesTotal.WithLabelValues(from)
	defer func() { received.Add(float64(body.n)) }()
	if err != nil {
		metrics.NetworkPeerReceivedFailuresTotal.WithLabelValues(from).Inc()
		failed(from, fmt.Sprintf("failed to decode raft message (%v)", err), http.StatusBadRequest)
		return
	}
	if m.GetType() != raftpb.MsgSnap {
		failed(from, "wrong raft message type", http.StatusBadRequest)
		return
	}
	inflight := metrics.NetworkSnapshotReceiveInflightsTotal.WithLabelValues(from)
	inflight.Inc()
	defer inflight.Dec()
	lg := t.lg.With(zap.String("remote-snapshot-sender-id", from), zap.Uint64("incoming-snapshot-index", m.GetSnapshot().GetMetadata().GetIndex()))
	lg.Info("receiving database snapshot", zap.Int64("incoming-snapshot-message-size-bytes", body.n),
		zap.String("incoming-snapshot-message-size", humanize.Bytes(uint64(body.n))))
	if err := t.receiveSnapshot(m, body); err != nil {
		text := fmt.Sprintf("failed to save KV snapshot (%v)", err)
		if errors.Is(err, ErrSnapshotNotProcessed) {
			text = fmt.Sprintf("failed to process raft message (%v)", err)
		}
		failed(from, text, http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	metrics.NetworkSnapshotReceiveSuccess.WithLabelValues(from).Inc()
	metrics.NetworkSnapshotReceiveTotalDurationSeconds.WithLabelValues(from).Observe(clock.Since(start).Seconds())
	lg.Info("received and saved database snapshot", zap.Int64("incoming-snapshot-size-bytes", body.n),
		zap.String("incoming-snapshot-size", humanize.Bytes(uint64(body.n))), zap.Duration("download-took", clock.Since(start)))
}

// receiveSnapshot looks at the message as deliver does and gives it to the Host.
func (t *Transport) receiveSnapshot(m *raftpb.Message, body io.Reader) error {
	if m.GetTo() != t.cfg.ID {
		return fmt.Errorf("%w: for member %s", ErrSnapshotNotProcessed, membership.FormatID(m.GetTo()))
	}
	if t.cfg.Host.IsRemoved(m.GetFrom()) {
		return fmt.Errorf("%w: from removed member %s", ErrSnapshotNotProcessed, membership.FormatID(m.GetFrom()))
	}
	// Not the context of the request: net/http ends that when a background read
	// of the connection times out, while the database is being synced.
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

// patientBody returns the body of a request such that each read has the read
// timeout to itself: a transfer may take hours as long as it moves.
func patientBody(w http.ResponseWriter, r *http.Request) io.Reader {
	return &patientReader{r: r.Body, rc: http.NewResponseController(w)}
}

type patientReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (p *patientReader) Read(b []byte) (int, error) {
	// A server without deadlines is not one on a network.
	_ = p.rc.SetReadDeadline(clock.Now().Add(readTimeout))
	n, err := p.r.Read(b)
	if err != nil {
		// Now the server watches the connection for its end; that may take long.
		_ = p.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// health is the answer of /raft/probing.
type health struct {
	OK  bool
	Now time.Time
}

func serveProbing(w http.ResponseWriter) {
	b, err := json.Marshal(health{OK: true, Now: clock.Now()})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(append(b, '\n')) // the prober notices a failed write itself
}

// HTTPServer returns a server for the peer port with the limits that the
// protocol asks for. Streams leave it: closing them is up to Stop.
func HTTPServer(h http.Handler, lg *zap.Logger) *http.Server {
	if lg == nil {
		lg = zap.NewNop()
	}
	return &http.Server{
		Handler: h,
		// The body handlers extend this as long as bytes come.
		ReadTimeout:       5 * time.Minute,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          zap.NewStdLog(lg),
		// No HTTP/2: streams take over the connection.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
}
