package httpproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/durable"
	"quorate/internal/membership"
)

const (
	// emptyInterval is how often an empty list is refreshed, unless the refresh interval is
	// shorter than the default.
	emptyInterval          = time.Second
	minRefreshInterval     = 100 * time.Millisecond
	defaultRefreshInterval = 30 * time.Second
	clusterFile            = "cluster"
	// maxClusterFile bounds the bytes read from the file; it has a URL for each member.
	maxClusterFile = 1 << 20
)

// endpoint is a client URL of a member.
type endpoint struct {
	url *url.URL
	// the endpoint is skipped until then, having failed; zero if it has not
	out time.Time
}

// directory holds the members' endpoints. Safe for concurrent use.
type directory struct {
	lg      *zap.Logger
	file    string
	wait    time.Duration // how long a failed endpoint is skipped
	members func(ctx context.Context, peers []string) ([]membership.Member, error)
	now     func() time.Time
	shuffle func(n int, swap func(i, j int))

	mu        sync.Mutex
	peers     []string
	endpoints []*endpoint
}

// remembered returns the peer URLs in the cluster file; none if there is no file.
func remembered(file string) ([]string, error) {
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxClusterFile {
		return nil, fmt.Errorf("%s has %d bytes: it is not the list of peers that a proxy saves", file, info.Size())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var c cluster
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%s: %w: remove it, and the proxy asks the members of --initial-cluster or --discovery again", file, err)
	}
	return c.PeerURLs, nil
}

type cluster struct{ PeerURLs []string }

// remember replaces the cluster file.
func remember(file string, peers []string) error {
	b, err := json.Marshal(cluster{peers})
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS, file, b)
}

// run refreshes the list every interval until ctx ends.
func (d *directory) run(ctx context.Context, interval time.Duration) {
	for {
		pause := max(interval, minRefreshInterval)
		if !d.refresh(ctx) && interval >= defaultRefreshInterval {
			pause = emptyInterval
		}
		t := clock.NewTimer(clock.System, pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// refresh asks the peers for the members. Without an answer the list is emptied: the
// members may have moved. It reports whether there is an endpoint.
func (d *directory) refresh(ctx context.Context) bool {
	d.mu.Lock()
	peers := slices.Clone(d.peers)
	d.mu.Unlock()
	ms, err := d.members(ctx, peers)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		d.lg.Warn("failed to get the members of the cluster; nothing is forwarded until one answers",
			zap.Strings("peer-urls", peers), zap.Error(err))
	}
	var known []string
	var endpoints []*endpoint
	for _, m := range ms {
		known = append(known, m.PeerURLs...)
		for _, text := range m.ClientURLs {
			u, err := url.Parse(text)
			if err != nil || u.Host == "" {
				d.lg.Warn("a member advertises an invalid client URL", zap.String("url", text), zap.Error(err))
				continue
			}
			endpoints = append(endpoints, &endpoint{url: u})
		}
	}
	d.shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints = endpoints
	slices.Sort(known)
	if len(known) > 0 && !slices.Equal(known, d.peers) {
		d.peers = known
		d.lg.Info("updated the peer URLs of the cluster", zap.Strings("peer-urls", known))
		if err := remember(d.file, known); err != nil {
			d.lg.Warn("failed to save the peer URLs", zap.String("path", d.file), zap.Error(err))
		}
	}
	return len(endpoints) > 0
}

// available returns the endpoints to try, in order.
func (d *directory) available() []*endpoint {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var in []*endpoint
	for _, e := range d.endpoints {
		if !now.Before(e.out) {
			in = append(in, e)
		}
	}
	return in
}

// failed skips an endpoint for a while.
func (d *directory) failed(e *endpoint, err error) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Before(e.out) {
		return
	}
	e.out = now.Add(d.wait)
	d.lg.Warn("marked an endpoint as unavailable", zap.Stringer("endpoint", e.url), zap.Duration("for", d.wait), zap.Error(err))
}

// urls returns all endpoints, for display.
func (d *directory) urls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]string, len(d.endpoints))
	for i, e := range d.endpoints {
		out[i] = e.url.String()
	}
	return out
}

func newDirectory(o Options, peers []string) *directory {
	return &directory{lg: o.Logger, file: filepath.Join(o.Dir, clusterFile), wait: o.FailureWait, members: o.Members,
		now: clock.Now, shuffle: rand.Shuffle, peers: peers}
}
