package peerapi

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"quorate/internal/digest"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
)

// maxRequest bounds the bodies of questions; they hold an id or a number.
const maxRequest = 64 << 10

// Backend is what the handlers ask the member. All methods are called from request
// goroutines, concurrently.
type Backend interface {
	ClusterID() uint64
	// Members returns the members, sorted by id.
	Members() []membership.Member
	// PromoteMember makes a learner a voter, on the leader, and returns the members
	// after it. token is the caller's auth token, empty without one. The errors that
	// Client.Promote names reach the caller; any other is answered with 500.
	PromoteMember(ctx context.Context, token string, id uint64) ([]membership.Member, error)
	// HashKV hashes this member's keys at a revision, 0 for the current. Its error goes
	// to the caller as text.
	HashKV(ctx context.Context, rev int64) (mvcc.HashResult, error)
	// Digest returns what this member has added up of the log behind an index.
	Digest(from uint64) digest.Report
	// DowngradeEnabled reports, after a linearizable read barrier, whether a
	// downgrade is under way.
	DowngradeEnabled(ctx context.Context) (bool, error)
	// Versions returns the version of the cluster and of the stored data, such
	// as 3.7.0; empty when not decided.
	Versions() (cluster, storage string)
}

// Options of the handler.
type Options struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration // of what needs a quorum
	Raft           RaftServer
	Leases         LeaseServer
}

// NewHandler serves the peer URLs.
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

func (h *handlers) clusterID() string { return membership.FormatID(h.b.ClusterID()) }

// allow answers 405 to every method but one.
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
	w.Write(data) // a lost answer is asked for again
}
