package peerapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"quorate/internal/digest"
	"quorate/internal/ids"
)

// pathDigest serves GET, with an index as the query parameter "from" and the cluster in
// the header; the response is a digest.Report. etcd does not have this path: its members
// answer 404.
const pathDigest = "/members/digest"

// ErrNoDigest means that a peer keeps no digest.
var ErrNoDigest = errors.New("the peer keeps no digest")

func (h *handlers) digest(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	if id := r.Header.Get(HeaderCluster); id != "" && id != h.clusterID() {
		http.Error(w, ErrOtherCluster.Error(), http.StatusPreconditionFailed)
		return
	}
	from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
	if err != nil {
		http.Error(w, "from is not an index", http.StatusBadRequest)
		return
	}
	report := h.b.Digest(ids.Index(from))
	w.Header().Set(HeaderCluster, h.clusterID())
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(report.Encode()) // the client retries after a lost response
}

// Digest queries the member at url for its digest of the log after an index.
// Refusals are ErrNoDigest, ErrOtherCluster, and others with their text.
func (c *Client) Digest(ctx context.Context, url string, clusterID ids.Cluster, from ids.Index) (digest.Report, error) {
	h := http.Header{}
	h.Set(HeaderCluster, clusterID.String())
	_, b, err := c.askFor(ctx, digest.MaxReport, http.MethodGet, url+pathDigest+"?from="+strconv.FormatUint(uint64(from), 10), h, nil)
	switch r := refused(err); {
	case r != nil && r.status == http.StatusNotFound:
		return digest.Report{}, ErrNoDigest
	case r != nil && r.status == http.StatusPreconditionFailed:
		return digest.Report{}, ErrOtherCluster
	case err != nil:
		return digest.Report{}, err
	}
	return digest.Decode(b)
}
