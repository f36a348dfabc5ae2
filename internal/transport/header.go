package transport

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"quorate/internal/membership"
)

// Headers of the peer protocol. Ids are unpadded hex and compared as strings.
const (
	headerFrom       = "X-Server-From"
	headerVersion    = "X-Server-Version"
	headerMinVersion = "X-Min-Cluster-Version"
	headerCluster    = "X-Etcd-Cluster-ID"
	headerTo         = "X-Raft-To"
	headerPeerURLs   = "X-PeerURLs"
)

// Paths of the peer port that this package serves.
const (
	pathRaft      = "/raft"
	pathStream    = "/raft/stream"
	pathSnapshot  = "/raft/snapshot"
	pathProbing   = "/raft/probing"
	streamMsgApp  = "msgapp"
	streamMessage = "message"
)

// What a receiver answers with status 412, and the sender knows by its text.
var (
	errIncompatible    = errors.New("incompatible version")
	errClusterMismatch = errors.New("cluster ID mismatch")
)

// ErrRemoved is given to Host.SelfRemoved: another member said that this one is
// no longer in the cluster.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster")

var errUnsupportedStream = errors.New("unsupported stream type")

// firstStreamVersion is the oldest release that has both streams; a member
// that sends no version header counts as older.
var firstStreamVersion = membership.Version{Major: 2, Minor: 1}

// setHeaders sets what every raft request carries.
func (t *Transport) setHeaders(h http.Header) {
	h.Set(headerFrom, membership.FormatID(t.cfg.ID))
	h.Set(headerVersion, t.cfg.Version)
	h.Set(headerMinVersion, membership.MinClusterVersion.String())
	h.Set(headerCluster, membership.FormatID(t.cfg.ClusterID))
	h.Set(headerPeerURLs, strings.Join(t.cfg.PeerURLs, ","))
}

// checkHeaders decides whether the sender of a request is of a release and of
// a cluster that this member can talk to.
func (t *Transport) checkHeaders(h http.Header) error {
	server, err := headerVersionOf(h, headerVersion)
	if err != nil {
		return errIncompatible
	}
	lowest, err := headerVersionOf(h, headerMinVersion)
	if err != nil {
		return errIncompatible
	}
	if server.MajorMinor().Less(membership.MinClusterVersion) || t.version.MajorMinor().Less(lowest.MajorMinor()) {
		return errIncompatible
	}
	if h.Get(headerCluster) != membership.FormatID(t.cfg.ClusterID) {
		return errClusterMismatch
	}
	return nil
}

// headerVersionOf reads a version header; without one the sender is a 2.0.
func headerVersionOf(h http.Header, name string) (membership.Version, error) {
	s := h.Get(name)
	if s == "" {
		return membership.Version{Major: 2}, nil
	}
	return membership.ParseVersion(s)
}

// statusError turns an answer that is not a success into an error. The body is
// read only as far as its text can matter.
func statusError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return fmt.Errorf("read answer with status %d: %w", resp.StatusCode, err)
	}
	text := strings.TrimSuffix(string(b), "\n")
	if resp.StatusCode == http.StatusPreconditionFailed {
		switch text {
		case errIncompatible.Error():
			return errIncompatible
		case errClusterMismatch.Error():
			return fmt.Errorf("%w: the peer is of cluster %s", errClusterMismatch, resp.Header.Get(headerCluster))
		}
	}
	return fmt.Errorf("unexpected status %d (%q)", resp.StatusCode, text)
}
