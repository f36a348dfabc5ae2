package peerapi

import (
	"errors"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// Headers of requests and responses below /raft. Ids are unpadded hex and compared
// as strings.
const (
	headerFrom       = "X-Server-From"
	headerVersion    = "X-Server-Version"
	headerMinVersion = "X-Min-Cluster-Version"
	headerTo         = "X-Raft-To"
	headerPeerURLs   = "X-PeerURLs"
	// HeaderCluster is also set on most other responses to peers, and on those of the v2
	// API.
	HeaderCluster = "X-Etcd-Cluster-ID"
)

// Responses with status 412, which the sender distinguishes by their text.
var (
	ErrIncompatible = errors.New("incompatible version")
	ErrOtherCluster = errors.New("cluster ID mismatch")
)

// Sender is a member as it presents itself to its peers.
type Sender struct {
	ID       ids.Member
	Cluster  ids.Cluster
	Version  membership.Version
	PeerURLs []string
}

// sign sets the headers that every raft request carries.
func (s *Sender) sign(h http.Header) {
	h.Set(headerFrom, s.ID.String())
	h.Set(headerVersion, s.Version.String())
	h.Set(headerMinVersion, membership.MinClusterVersion.String())
	h.Set(HeaderCluster, s.Cluster.String())
	h.Set(headerPeerURLs, strings.Join(s.PeerURLs, ","))
}

// Accept checks the method and the sender of a raft request. If it rejects the request,
// with ErrIncompatible, ErrOtherCluster or for its method, it writes the response.
// Either way, it sets the header of the cluster, and for streams that of the release.
func (s *Sender) Accept(w http.ResponseWriter, r *http.Request, method string) error {
	if !allow(w, r, method) {
		return errMethod
	}
	w.Header().Set(HeaderCluster, s.Cluster.String())
	if method == http.MethodGet {
		w.Header().Set(headerVersion, s.Version.String())
	}
	err := s.check(r.Header)
	if err != nil {
		http.Error(w, err.Error(), http.StatusPreconditionFailed)
	}
	return err
}

var errMethod = errors.New("method not allowed")

// check decides whether this member can communicate with the sender of a
// request, by release and cluster.
func (s *Sender) check(h http.Header) error {
	server, err := versionIn(h, headerVersion)
	if err != nil {
		return ErrIncompatible
	}
	lowest, err := versionIn(h, headerMinVersion)
	if err != nil {
		return ErrIncompatible
	}
	if server.MajorMinor().Less(membership.MinClusterVersion) || s.Version.MajorMinor().Less(lowest.MajorMinor()) {
		return ErrIncompatible
	}
	if h.Get(HeaderCluster) != s.Cluster.String() {
		return ErrOtherCluster
	}
	return nil
}

// versionIn reads a version header; without one, the sender counts as 2.0.
func versionIn(h http.Header, name string) (membership.Version, error) {
	s := h.Get(name)
	if s == "" {
		return membership.Version{Major: 2}, nil
	}
	return membership.ParseVersion(s)
}

// From describes the sender of a request by its headers; malformed ones are ignored.
type From struct {
	ID       ids.Member // 0 if unknown
	Version  membership.Version
	PeerURLs []string
	For      string // the member that the stream is requested from, as text
}

// FromHeader decodes the headers in which the sender of a raft request
// describes itself.
func FromHeader(h http.Header) From {
	f := From{For: h.Get(headerTo)}
	if id, err := ids.ParseMember(h.Get(headerFrom)); err == nil {
		f.ID = id
	}
	if v, err := versionIn(h, headerVersion); err == nil {
		f.Version = v
	}
	if urls := h.Get(headerPeerURLs); urls != "" {
		f.PeerURLs = strings.Split(urls, ",")
	}
	return f
}

// LogFields returns the headers of a request that Accept rejected, along with
// those of s.
func (s *Sender) LogFields(r *http.Request) []zap.Field {
	return []zap.Field{zap.Stringer("local-member-cluster-id", s.Cluster),
		zap.String("local-member-server-version", s.Version.String()),
		zap.String("local-member-server-minimum-cluster-version", membership.MinClusterVersion.String()),
		zap.String("remote-peer-server-name", r.Header.Get(headerFrom)),
		zap.String("remote-peer-server-version", r.Header.Get(headerVersion)),
		zap.String("remote-peer-server-minimum-cluster-version", r.Header.Get(headerMinVersion)),
		zap.String("remote-peer-cluster-id", r.Header.Get(HeaderCluster)), zap.String("remote-address", r.RemoteAddr)}
}
