package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/transport"
)

// resolveTimeout bounds the wait for names of members to resolve: in a cluster
// that is just being started the names may come later.
const resolveTimeout = 30 * time.Second

// ParseInitialCluster reads name=url,name=url into the sorted URLs of each
// name. A name that stands more than once has several URLs.
func ParseInitialCluster(text string) (map[string][]url.URL, error) {
	texts := map[string][]string{}
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		name, u, _ := strings.Cut(item, "=")
		texts[name] = append(texts[name], u)
	}
	cluster := make(map[string][]url.URL, len(texts))
	for _, name := range sortedKeys(texts) {
		urls, err := ParseURLs(texts[name])
		if err != nil {
			return nil, err
		}
		cluster[name] = urls
	}
	return cluster, nil
}

// ClusterString is the inverse of ParseInitialCluster, sorted.
func ClusterString(cluster map[string][]url.URL) string {
	var pairs []string
	for name, urls := range cluster {
		for i := range urls {
			pairs = append(pairs, name+"="+urls[i].String())
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// InitialMembers is the cluster to bootstrap or to join, for a member without
// data: once there is a log, membership comes from it, and --initial-cluster is
// not even looked at.
func (c *Config) InitialMembers() (map[string][]url.URL, error) {
	cluster, err := ParseInitialCluster(c.InitialCluster)
	if err != nil {
		return nil, fmt.Errorf("error setting up initial cluster: %w", err)
	}
	return cluster, nil
}

// VerifyBootstrap checks InitialMembers for a member that bootstraps a new
// cluster: this member is in it, under the URLs that it advertises, and no URL
// stands twice. Host names are resolved when texts differ, for at most 30 s.
func (c *Config) VerifyBootstrap(ctx context.Context) error {
	cluster, err := c.InitialMembers()
	if err != nil {
		return err
	}
	if err := c.hasLocalMember(cluster); err != nil {
		return err
	}
	if err := c.advertisedMatches(ctx, cluster[c.Name]); err != nil {
		return err
	}
	return noDuplicates(cluster)
}

// VerifyJoin checks InitialMembers for a member that joins a running cluster.
func (c *Config) VerifyJoin() error {
	cluster, err := c.InitialMembers()
	if err != nil {
		return err
	}
	if err := c.hasLocalMember(cluster); err != nil {
		return err
	}
	return noDuplicates(cluster)
}

func (c *Config) hasLocalMember(cluster map[string][]url.URL) error {
	if cluster[c.Name] == nil {
		var unnamed []string
		for _, u := range cluster[""] {
			unnamed = append(unnamed, u.String())
		}
		return membership.NoLocalName(c.Name, unnamed)
	}
	return nil
}

func noDuplicates(cluster map[string][]url.URL) error {
	seen := map[string]bool{}
	for _, urls := range cluster {
		for i := range urls {
			if u := membership.CanonicalURL(urls[i].String()); seen[u] {
				return fmt.Errorf("initial cluster %s has duplicate url", ClusterString(cluster))
			} else {
				seen[u] = true
			}
		}
	}
	return nil
}

// advertisedMatches compares what this member advertises with what the initial
// cluster says about it: the others will dial the latter.
func (c *Config) advertisedMatches(ctx context.Context, listed []url.URL) error {
	advertised := slices.Clone(c.AdvertisePeerURLs)
	slices.SortFunc(advertised, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	adv, lst := URLStrings(advertised), URLStrings(listed)
	same, mismatch := transport.SameURLs(ctx, c.lg, adv, lst)
	if same {
		return nil
	}
	if missing := membership.AbsentURLs(lst, adv); len(missing) > 0 {
		for i := range missing {
			missing[i] = c.Name + "=" + missing[i]
		}
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%w)",
			strings.Join(missing, ","), strings.Join(adv, ","), mismatch)
	}
	self := ClusterString(map[string][]url.URL{c.Name: advertised})
	if missing := membership.AbsentURLs(adv, lst); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s", strings.Join(missing, ","), self)
	}
	return fmt.Errorf("failed to resolve %s to match --initial-cluster=%s (%w)", strings.Join(adv, ","), self, mismatch)
}

func hostPort(host, port string) string {
	if port == "" {
		return host
	}
	return net.JoinHostPort(host, port)
}

// defaultHostIP is the address of this host on the way to everywhere else. The
// route is looked up by the kernel; nothing is sent.
func defaultHostIP() (string, error) {
	var firstErr error
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation addresses
		conn, err := net.Dial("udp", target)
		if err != nil {
			firstErr = errors.Join(firstErr, err)
			continue
		}
		defer conn.Close()
		return conn.LocalAddr().(*net.UDPAddr).IP.String(), nil
	}
	return "", fmt.Errorf("could not find default route: %w", firstErr)
}

// CheckDataDir looks into the data directory and warns about files that do not
// belong. proxy tells that it is one of a proxy, whatever --proxy says, or that
// it is empty and --proxy says so.
func (c *Config) CheckDataDir() (proxy bool, err error) {
	c.warnOpen(c.DataDir)
	if c.WALDir != "" {
		c.warnOpen(c.WALDir)
	}
	entries, err := os.ReadDir(c.DataDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("list data directory: %w", err)
	}
	member := false
	for _, e := range entries {
		switch e.Name() {
		case "member":
			member = true
		case "proxy":
			proxy = true
		default:
			c.lg.Warn("found invalid file under data directory", zap.String("filename", e.Name()), zap.String("data-dir", c.DataDir))
		}
	}
	switch {
	case member && proxy:
		return false, errors.New("invalid datadir; both member and proxy directories exist")
	case member && c.Proxy != ProxyOff:
		c.lg.Warn("the data directory is one of a member: --proxy does not count", zap.String("data-dir", c.DataDir), zap.String("proxy", c.Proxy))
		return false, nil
	}
	return proxy || !member && c.Proxy != ProxyOff, nil
}

// privateDir is the mode of directories that hold data of clients.
const privateDir = os.ModeDir | 0o700

// warnOpen warns about a directory that other users may look into.
func (c *Config) warnOpen(dir string) {
	if info, err := os.Stat(dir); err == nil && info.IsDir() && info.Mode().Perm() != privateDir.Perm() {
		c.lg.Warn("check file permission", zap.Error(fmt.Errorf("directory %q exist, but the permission is %q. The recommended permission is %q to prevent possible unprivileged access to the data",
			dir, info.Mode(), privateDir.Perm())))
	}
}

// What --proxy may be.
const (
	ProxyOff      = "off"
	ProxyReadOnly = "readonly"
	ProxyOn       = "on"
)

// ProxyDir is where a proxy keeps what it knows.
func (c *Config) ProxyDir() string { return filepath.Join(c.DataDir, "proxy") }

// FallsBackToProxy reports whether a member that finds its cluster full is to
// become a proxy of it.
func (c *Config) FallsBackToProxy() bool {
	return c.V2Discovery != "" && c.DiscoveryFallback == "proxy"
}
