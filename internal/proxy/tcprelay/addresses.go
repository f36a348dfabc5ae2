package tcprelay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
)

// Resolver looks up host names and the machine's own addresses.
type Resolver struct {
	LookupHost func(host string) ([]string, error)
	Interfaces func() ([]net.Addr, error)
}

// SystemResolver is the system's resolver.
var SystemResolver = Resolver{net.LookupHost, net.InterfaceAddrs}

// ParseEndpoints parses host:port pairs or URLs into endpoints without priority or weight.
// The errors are etcd's.
func ParseEndpoints(list []string) ([]net.SRV, error) {
	var out []net.SRV
	for _, s := range list {
		addr := s
		if u, err := url.Parse(s); err == nil && u.Host != "" {
			addr = u.Host
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("error parsing endpoint %q", addr)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("error parsing endpoint %q", addr)
		}
		out = append(out, net.SRV{Target: host, Port: uint16(n)})
	}
	return out, nil
}

// Check resolves all names before the start, and rejects an endpoint that is the relay's
// own address: the relay would connect to itself until it runs out of descriptors. The
// errors are etcd's.
func (r Resolver) Check(listen string, endpoints []net.SRV) error {
	lhost, lport, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("failed to validate listen address: %s", listen)
	}
	own, err := r.LookupHost(lhost)
	if err != nil {
		return fmt.Errorf("failed to resolve listen host: %s", lhost)
	}
	for _, e := range endpoints {
		addrs, err := r.LookupHost(e.Target)
		if err != nil {
			return fmt.Errorf("failed to resolve endpoint host: %s", e.Target)
		}
		if strconv.Itoa(int(e.Port)) != lport {
			continue
		}
		for _, addr := range addrs {
			if r.reaches(addr, own) {
				return fmt.Errorf("SRV or endpoint (%s:%d->%s:%d) should not resolve to the gateway listen addr (%s)", e.Target, e.Port, addr, e.Port, listen)
			}
		}
	}
	if len(endpoints) == 0 {
		return errors.New("no endpoints found")
	}
	return nil
}

// reaches reports whether a connection to addr would reach a listener on one of own.
func (r Resolver) reaches(addr string, own []string) bool {
	to, err := netip.ParseAddr(addr)
	for _, s := range own {
		if s == addr {
			return true
		}
		on, perr := netip.ParseAddr(s)
		if err != nil || perr != nil {
			continue
		}
		switch to, on := to.Unmap(), on.Unmap(); {
		case to == on:
			return true
		case to.IsUnspecified(): // dials loopback
			if on.IsLoopback() && to.Is4() == on.Is4() || on.IsUnspecified() {
				return true
			}
		case on.IsUnspecified() && (to.Is4() || on.Is6()) && (on.Is6() || on.Is4() == to.Is4()):
			if to.IsLoopback() || r.local(to) {
				return true
			}
		}
	}
	return false
}

// local reports whether addr is an address of this machine.
func (r Resolver) local(a netip.Addr) bool {
	all, err := r.Interfaces()
	if err != nil {
		return false // the check is best effort
	}
	for _, i := range all {
		if p, err := netip.ParsePrefix(i.String()); err == nil && p.Addr().Unmap() == a {
			return true
		}
	}
	return false
}
