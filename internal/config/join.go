package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"

	"go.uber.org/zap"
)

// Default ports of a member that was given --join and no URLs to listen on.
const (
	joinPeerPort   = "2380"
	joinClientPort = "2379"
)

// Joining reports whether the member adds itself to a running cluster.
func (c *Config) Joining() bool { return len(c.Join) > 0 }

// Discovers reports whether the founders of the cluster find each other through discovery.
func (c *Config) Discovers() bool {
	return c.V2Discovery.URL != "" || c.SRV.Domain != "" || len(c.Discovery.Client.Endpoints) > 0
}

// settleJoin fills in what a member that joins by --join was not given: its name, and URLs
// on the address under which the cluster can reach it. Flags that were set stay as they
// are.
func (p *parser) settleJoin(c *Config) error {
	if !c.Joining() {
		return nil
	}
	for _, u := range c.Join {
		if isUnix(u) {
			return fmt.Errorf("--join %s: give the client URL of a member, http://HOST:PORT or https://HOST:PORT", u.String())
		}
	}
	if c.InitialCluster != "" && c.InitialCluster != Default().InitialCluster {
		return errors.New("--join and --initial-cluster cannot be set at the same time: the member list comes from the cluster that is joined")
	}
	if c.Discovers() {
		return errors.New("--join cannot be combined with discovery flags: it names the cluster")
	}
	if c.Member.ForceNew {
		return errors.New("--join and --force-new-cluster cannot be set at the same time")
	}
	c.InitialCluster, c.ClusterState = "", StateExisting
	if c.Member.Name == DefaultName || c.Member.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--join without --name takes the name of the host: %w", err)
		}
		c.Member.Name = name
		c.lg.Info("'name' was not given; using the name of the host", zap.String("name", name))
	}
	ip, err := p.hostToward(c.Join[0].Host)
	if err != nil {
		if ip, err = p.hostIP(); err != nil {
			return fmt.Errorf("--join %s: find the address of this host: %w; give --listen-peer-urls and --listen-client-urls", c.Join[0].String(), err)
		}
	}
	if !c.explicit["listen-peer-urls"] {
		c.ListenPeerURLs = []url.URL{{Scheme: scheme(c.PeerTLS.CertFile != "" || c.PeerTLS.AutoTLS), Host: hostPort(ip, joinPeerPort)}}
	}
	if !c.explicit["listen-client-urls"] {
		secure := scheme(c.ClientTLS.CertFile != "" || c.ClientTLS.AutoTLS)
		c.ListenClientURLs = []url.URL{{Scheme: secure, Host: hostPort(ip, joinClientPort)}}
		if !isLoopback(ip) {
			c.ListenClientURLs = append(c.ListenClientURLs, url.URL{Scheme: secure, Host: hostPort("127.0.0.1", joinClientPort)})
		}
	}
	if !c.explicit["initial-advertise-peer-urls"] {
		c.AdvertisePeerURLs = reachable(c.ListenPeerURLs, ip)
	}
	if !c.explicit["advertise-client-urls"] {
		c.AdvertiseClientURLs = reachable(c.ListenClientURLs, ip)
	}
	c.lg.Info("joining a running cluster", zap.Strings("join", URLStrings(c.Join)), zap.String("name", c.Member.Name),
		zap.Strings("listen-peer-urls", URLStrings(c.ListenPeerURLs)), zap.Strings("listen-client-urls", URLStrings(c.ListenClientURLs)),
		zap.Strings("initial-advertise-peer-urls", URLStrings(c.AdvertisePeerURLs)), zap.Strings("advertise-client-urls", URLStrings(c.AdvertiseClientURLs)))
	return nil
}

// reachable turns URLs to listen on into URLs to dial: it replaces an unspecified address
// by ip, and leaves out loopback addresses unless there is nothing else.
func reachable(listen []url.URL, ip string) []url.URL {
	var far, near []url.URL
	for _, u := range listen {
		if isUnix(u) {
			near = append(near, u)
			continue
		}
		host := u.Hostname()
		if a := net.ParseIP(host); a != nil && a.IsUnspecified() {
			host = ip
			u.Host = hostPort(host, u.Port())
		}
		if isLoopback(host) {
			near = append(near, u)
		} else {
			far = append(far, u)
		}
	}
	same := func(a, b url.URL) bool { return a.String() == b.String() }
	if len(far) > 0 {
		return slices.CompactFunc(far, same)
	}
	return slices.CompactFunc(near, same)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func scheme(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// hostToward returns the source address of this host on its route to target, a host with a
// port. The kernel looks the route up; no packet is sent.
func hostToward(target string) (string, error) {
	conn, err := net.Dial("udp", target)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String(), nil
}
