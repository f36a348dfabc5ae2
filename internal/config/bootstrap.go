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

	"quorate/internal/discovery"
	"quorate/internal/membership"
	"quorate/internal/transport"
)

// resolveTimeout bounds how long to wait for members' host names to resolve. In a cluster
// that is just starting, DNS may learn the names late.
const resolveTimeout = 30 * time.Second

// InitialMembers returns the validated list of members to bootstrap or to join. It is for a
// member without data only: once there is a log, membership comes from the log and
// --initial-cluster is not even parsed. The list contains this member. In a new cluster it
// must list this member under the URLs that it advertises, and no URL twice. If the texts
// of URLs differ, host names are resolved, for up to 30 s.
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

// Self returns this member in the form of --initial-cluster.
func (c *Config) Self() string {
	return membership.FormatInitialCluster([]membership.InitialMember{{Name: c.Member.Name, PeerURLs: URLStrings(c.AdvertisePeerURLs)}})
}

func hostPort(host, port string) string {
	if port == "" {
		return host
	}
	return net.JoinHostPort(host, port)
}

// defaultHostIP returns the source address of this host on its default route. The kernel
// looks the route up; no packet is sent.
func defaultHostIP() (string, error) {
	var firstErr error
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // reserved for documentation
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

// CheckDataDir lists the data directory and warns about unexpected files. proxy reports
// that the directory belongs to a proxy, whatever --proxy says, or that it is empty and
// --proxy is set.
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
		c.lg.Warn("the data directory belongs to a member: ignoring --proxy", zap.String("data-dir", c.Member.DataDir), zap.String("proxy", c.Proxy))
		return false, nil
	}
	return proxy || !member && c.Proxy != ProxyOff, nil
}

// privateDir is the mode of directories that hold data of clients.
const privateDir = os.ModeDir | 0o700

// warnOpen warns about a directory that other users can read.
func (c *Config) warnOpen(dir string) {
	if info, err := os.Stat(dir); err == nil && info.IsDir() && info.Mode().Perm() != privateDir.Perm() {
		c.lg.Warn("check file permission", zap.Error(fmt.Errorf("directory %q exist, but the permission is %q. The recommended permission is %q to prevent possible unprivileged access to the data",
			dir, info.Mode(), privateDir.Perm())))
	}
}

// Values of --proxy.
const (
	ProxyOff      = "off"
	ProxyReadOnly = "readonly"
	ProxyOn       = "on"
)

// ProxyDir is the directory in which a proxy saves the peer URLs of the members.
func (c *Config) ProxyDir() string { return filepath.Join(c.Member.DataDir, "proxy") }

// FallsBackToProxy reports whether a member that finds its cluster full becomes a proxy to
// it.
func (c *Config) FallsBackToProxy() bool {
	return c.V2Discovery.URL != "" && c.V2Discovery.Fallback == discovery.FallbackProxy
}
