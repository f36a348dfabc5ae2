package peerapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"quorate/internal/build"
)

// PathVersion serves GET, for members and clients; the response is
// Versions.
const PathVersion = "/version"

// Versions is the response of a member to PathVersion.
type Versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"` // "not_decided" before the first decision
	Storage string `json:"storage"`     // empty before 3.6
	Quorate string `json:"quorate"`     // empty for members that do not run Quorate
}

// VersionHandler returns the handler of PathVersion; versions is
// Backend.Versions.
func VersionHandler(versions func() (cluster, storage string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allow(w, r, http.MethodGet) {
			return
		}
		v := Versions{Server: build.EtcdVersion, Quorate: build.Version}
		v.Cluster, v.Storage = versions()
		if v.Cluster == "" {
			v.Cluster = "not_decided"
		}
		if v.Storage == "" {
			v.Storage = "unknown"
		}
		data, err := json.Marshal(v)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, data)
	})
}

// Version queries one member's versions, at any of its peer URLs.
func (c *Client) Version(ctx context.Context, urls []string, timeout time.Duration) (v Versions, err error) {
	err = c.askAny(ctx, urls, PathVersion, timeout, func(_ http.Header, b []byte) error {
		return json.Unmarshal(b, &v)
	})
	return v, err
}
