package peerapi

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"quorate/internal/digest"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// maxRequest bounds the bodies of queries in bytes; they hold an id or a
// number.
const maxRequest = 64 << 10

// Backend is the member as the handlers see it. Its methods are called
// concurrently, from request goroutines.
type Backend interface {
	ClusterID() ids.Cluster
	// Members returns the members, sorted by id.
	Members() []membership.Member
	// PromoteMember promotes a learner to a voter, on the leader, and returns the
	// members afterwards. token is the caller's auth token, empty if there is none.
	// The errors that Client.Promote documents reach the caller; any other becomes
	// status 500.
	PromoteMember(ctx context.Context, token string, id ids.Member) ([]membership.Member, error)
	// HashKV hashes this member's keys at a revision, 0 for the current one. The caller
	// receives the text of its error.
	HashKV(ctx context.Context, rev ids.Revision) (mvcc.HashResult, error)
	// Digest returns this member's digest of the log after an index.
	Digest(from ids.Index) digest.Report
	// DowngradeEnabled reports, after a linearizable read barrier, whether a
	// downgrade is in progress.
	DowngradeEnabled(ctx context.Context) (bool, error)
	// Versions returns the versions of the cluster and of the stored data, such
	// as 3.7.0; empty if undecided.
	Versions() (cluster, storage string)
}

// Options of the handler.
type Options struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration // of requests that need a quorum
	Raft           RaftServer
	Leases         LeaseServer
}

// NewHandler returns the handler of the peer URLs.
func NewHandler(b Backend, o Options) http.Handler {
	h := &handlers{b: b, o: o}
	mux := http.NewServeMux()
	mux.HandleFunc(PathMembers, h.members)
	mux.HandleFunc(pathPromote, h.promote)
	mux.HandleFunc(pathHashKV, h.hashKV)
	mux.HandleFunc(pathDigest, h.digest)
	mux.HandleFunc(pathDowngrade, h.downgradeEnabled)
	mux.Handle(PathVersion, VersionHandler(b.Versions))
	mux.HandleFunc(pathLeases, h.leases)
	mux.HandleFunc(pathLeaseInternal, h.leases)
	mux.Handle(pathRaft, RaftHandler(o.Raft))
	mux.Handle(pathRaft+"/", RaftHandler(o.Raft))
	return mux
}

type handlers struct {
	b Backend
	o Options
}

func (h *handlers) clusterID() string { return h.b.ClusterID().String() }

// allow responds with status 405 to every method but one.
func allow(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

func writeJSON(w http.ResponseWriter, data []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(data) // the client retries after a lost response
}
