package peerapi

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"
)

// answering is a peer that gives the same answer to every request.
type answering struct {
	status  int
	cluster string
	body    []byte
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{}
	h.Set(HeaderCluster, a.cluster)
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// Whatever a peer answers, a query returns, with an error if the peer refused.
func FuzzAnswers(f *testing.F) {
	f.Add(200, "cdf818194e3a8c32", []byte(`{"etcdserver":"3.7.0","etcdcluster":"3.7.0"}`))
	f.Add(200, "x", []byte(`[{"id":1,"peerURLs":["http://a:1"],"name":"n","isLearner":true}]`))
	f.Add(200, "", []byte(`{"header":{"revision":3},"hash":7,"compact_revision":2}`))
	f.Add(200, "", []byte(`{"OK":true,"Now":"2026-01-01T00:00:00Z"}`))
	f.Add(412, "", []byte("no"))
	f.Add(200, "", []byte("true"))
	f.Fuzz(func(t *testing.T, status int, cluster string, body []byte) {
		if status < 200 || status > 599 {
			status = http.StatusOK
		}
		h := &http.Client{Transport: answering{status, cluster, body}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		c, urls := NewClient(h), []string{"http://a:1"}
		for what, query := range map[string]func() error{
			"version":   func() error { _, err := c.Version(t.Context(), urls, time.Minute); return err },
			"members":   func() error { _, _, err := c.Members(t.Context(), urls, time.Minute); return err },
			"promotion": func() error { _, err := c.Promote(t.Context(), urls[0], 1, "token"); return err },
			"downgrade": func() error { _, err := c.DowngradeEnabled(t.Context(), urls, time.Minute); return err },
			"hash":      func() error { _, err := c.HashKV(t.Context(), urls[0], 1, 2); return err },
			"digest":    func() error { _, err := c.Digest(t.Context(), urls[0], 1, 2); return err },
			"probe":     func() error { _, err := Probe(t.Context(), h, urls[0]); return err },
		} {
			if err := query(); err == nil && status != http.StatusOK {
				t.Errorf("%s: status %d is no error", what, status)
			}
		}
	})
}
