package peerapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// pathDowngrade serves GET; the response is true or false: whether the cluster is being
// downgraded.
const pathDowngrade = "/downgrade/enabled"

func (h *handlers) downgradeEnabled(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	w.Header().Set(HeaderCluster, h.clusterID())
	ctx, cancel := context.WithTimeout(r.Context(), h.o.RequestTimeout)
	defer cancel()
	enabled, err := h.b.DowngradeEnabled(ctx)
	if err != nil {
		http.Error(w, fmt.Sprintf("failed linearized read: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, strconv.FormatBool(enabled))
}

// DowngradeEnabled queries whether a cluster downgrade is in progress.
func (c *Client) DowngradeEnabled(ctx context.Context, urls []string, timeout time.Duration) (on bool, err error) {
	err = c.askAny(ctx, urls, pathDowngrade, timeout, func(_ http.Header, b []byte) (err error) {
		on, err = strconv.ParseBool(string(b))
		return err
	})
	return on, err
}
