package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/transport"
)

// resolveTimeout bounds the wait for names of members to resolve: in a cluster
// that is just being started the names may come later.
const resolveTimeout = 30 * time.Second

// InitialMembers is the cluster to bootstrap or to join, checked, for a member without
// data: once there is a log, membership comes from it, and --initial-cluster is not even
// looked at. This member is in it. In a new cluster it stands there under the URLs that
// it advertises, and no URL stands twice; host names are resolved when texts differ, for
// at most 30 s.
func (c *Config) InitialMembers(ctx context.Context) ([]membership.InitialMember, error) {
	ms, err := membership.ParseInitialCluster(c.InitialCluster)
	if err != nil {
		return nil, fmt.Errorf("error setting up initial cluster: %w", err)
	}
	if !c.IsNewCluster() {
		return ms, membership.CheckInitial(ms, c.Member.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	return ms, membership.CheckFounder(ms, c.Member.Name, URLStrings(c.AdvertisePeerURLs),
		func(a, b []string) (bool, error) { return transport.SameURLs(ctx, c.lg, a, b) })
}

// Self is this member in the form of --initial-cluster.
func (c *Config) Self() string {
	return membership.FormatInitialCluster([]membership.InitialMember{{Name: c.Member.Name, PeerURLs: URLStrings(c.AdvertisePeerURLs)}})
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
	c.warnOpen(c.Member.DataDir)
	if c.Member.LogDir != "" {
		c.warnOpen(c.Member.LogDir)
	}
	entries, err := os.ReadDir(c.Member.DataDir)
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
			c.lg.Warn("found invalid file under data directory", zap.String("filename", e.Name()), zap.String("data-dir", c.Member.DataDir))
		}
	}
	switch {
	case member && proxy:
		return false, errors.New("invalid datadir; both member and proxy directories exist")
	case member && c.Proxy != ProxyOff:
		c.lg.Warn("the data directory is one of a member: --proxy does not count", zap.String("data-dir", c.Member.DataDir), zap.String("proxy", c.Proxy))
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
func (c *Config) ProxyDir() string { return filepath.Join(c.Member.DataDir, "proxy") }

// FallsBackToProxy reports whether a member that finds its cluster full is to
// become a proxy of it.
func (c *Config) FallsBackToProxy() bool {
	return c.V2Discovery != "" && c.DiscoveryFallback == "proxy"
}
