package plan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Host is a machine that one member runs on.
type Host struct {
	Name    string // of the member
	Address string // IP address, as netip prints it, or name in lower case
}

// ParseHosts parses arguments NAME=ADDRESS. Its errors name the argument and say what
// is expected.
func ParseHosts(args []string) ([]Host, error) {
	if len(args) == 0 {
		return nil, errors.New("name the hosts of the cluster as NAME=ADDRESS, such as etcd-1=192.168.79.134 etcd-2=192.168.79.136 etcd-3=192.168.79.137")
	}
	hosts := make([]Host, 0, len(args))
	names, addresses := map[string]bool{}, map[string]string{}
	for _, arg := range args {
		h, err := parseHost(arg)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", arg, err)
		}
		if names[h.Name] {
			return nil, fmt.Errorf("%q: there are two members called %s; each needs a name of its own", arg, h.Name)
		}
		if other, taken := addresses[h.Address]; taken {
			return nil, fmt.Errorf("%q: %s has this address already; each member needs a host of its own", arg, other)
		}
		names[h.Name], addresses[h.Address] = true, h.Name
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// fits matches a valid name, which becomes part of --initial-cluster, a directory and a
// line of a unit.
var fits = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func parseHost(arg string) (Host, error) {
	name, address, ok := strings.Cut(arg, "=")
	switch {
	case !ok:
		return Host{}, errors.New("want NAME=ADDRESS, such as etcd-1=192.168.79.134")
	case name == "":
		return Host{}, errors.New("the name before = is empty")
	case !fits.MatchString(name):
		return Host{}, fmt.Errorf("the name %q does not fit: at most 63 letters, digits, '.', '_' and '-', and a letter or digit first", name)
	case address == "":
		return Host{}, errors.New("the address after = is empty")
	}
	address, err := parseAddress(address)
	return Host{name, address}, err
}

// parseAddress normalizes an IP address or a host name, so that equal addresses compare
// equal.
func parseAddress(text string) (string, error) {
	if strings.Contains(text, "://") {
		return "", errors.New("give the address without http:// and port; ports are set by --client-port and --peer-port, https by --tls")
	}
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")); err == nil {
		addr = addr.Unmap()
		switch {
		case addr.Zone() != "":
			return "", fmt.Errorf("an address with a zone means something on one host only; give one without %%%s", addr.Zone())
		case addr.IsUnspecified() || addr.IsMulticast():
			return "", fmt.Errorf("%s is no address of one host", addr)
		}
		return addr.String(), nil
	}
	if host, port, err := net.SplitHostPort(text); err == nil {
		return "", fmt.Errorf("leave out the port: %s, not %s:%s; ports are set by --client-port and --peer-port", host, host, port)
	}
	if !isHostname(text) {
		return "", fmt.Errorf("%q is neither an IP address nor the name of a host", text)
	}
	return strings.ToLower(text), nil
}

var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// isHostname follows RFC 1123. A name that ends in a number is a mistyped address.
func isHostname(text string) bool {
	if len(text) > 253 {
		return false
	}
	labels := strings.Split(text, ".")
	for _, l := range labels {
		if !label.MatchString(l) {
			return false
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

func isLoopback(address string) bool {
	addr, err := netip.ParseAddr(address)
	return address == "localhost" || err == nil && addr.IsLoopback()
}

// path matches a valid directory on a host: no blanks, and no characters with a meaning
// in systemd, YAML or a shell.
var path = regexp.MustCompile(`^(/[A-Za-z0-9_+@.-]+)+$`)

// Limits of etcd's times, in milliseconds.
const (
	defaultHeartbeat = 100
	defaultElection  = 1000
	maxElection      = 50000
)

func (o Options) check() error {
	if len(o.Hosts) == 0 {
		return errors.New("no hosts were given")
	}
	for _, h := range o.Hosts {
		if isLoopback(h.Address) && len(o.Hosts)+len(o.Join) > 1 {
			return fmt.Errorf("%q: the other hosts cannot reach a member on %s; give its address in the network", h.Name+"="+h.Address, h.Address)
		}
	}
	if o.Format != Unit && o.Format != YAML {
		return fmt.Errorf("--format %s: there are unit and yaml", o.Format)
	}
	if !fits.MatchString(o.Token) {
		return fmt.Errorf("--token %q: at most 63 letters, digits, '.', '_' and '-', and a letter or digit first", o.Token)
	}
	for _, d := range []struct{ flag, value string }{{"--data-dir", o.DataDir}, {"--cert-dir", o.CertDir}} {
		if !path.MatchString(d.value) {
			return fmt.Errorf("%s %q: want an absolute path of letters, digits and '/', '.', '_', '-', '+', '@'", d.flag, d.value)
		}
	}
	for _, p := range []struct {
		flag  string
		value int
	}{{"--client-port", o.ClientPort}, {"--peer-port", o.PeerPort}} {
		if p.value < 1 || p.value > 65535 {
			return fmt.Errorf("%s %d: a port is between 1 and 65535", p.flag, p.value)
		}
	}
	if o.ClientPort == o.PeerPort {
		return fmt.Errorf("--client-port and --peer-port are both %d; clients and members need a port each", o.ClientPort)
	}
	if o.Years < 1 || o.Years > 100 {
		return fmt.Errorf("--valid %d: certificates can be valid for 1 to 100 years", o.Years)
	}
	if err := o.checkTimes(); err != nil {
		return err
	}
	return o.checkJoin()
}

func (o Options) checkTimes() error {
	heartbeat, election := o.HeartbeatMs, o.ElectionMs
	if heartbeat == 0 {
		heartbeat = defaultHeartbeat
	}
	if election == 0 {
		election = defaultElection
	}
	switch {
	case heartbeat < 0 || election < 0:
		return errors.New("--heartbeat-interval and --election-timeout are milliseconds above 0")
	case election/5 < heartbeat:
		return fmt.Errorf("--election-timeout %d must be at least five times --heartbeat-interval %d", election, heartbeat)
	case election > maxElection:
		return fmt.Errorf("--election-timeout %d is more than %d milliseconds", election, maxElection)
	}
	return nil
}

func (o Options) checkJoin() error {
	for _, text := range o.Join {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Host != strings.TrimPrefix(text, u.Scheme+"://") {
			return fmt.Errorf("--join %q: give client URLs of running members, such as %s", text, o.url("192.168.79.134", o.ClientPort))
		}
		if _, err := parseAddress(u.Hostname()); err != nil {
			return fmt.Errorf("--join %q: %w", text, err)
		}
		if o.TLS && u.Scheme == "http" {
			return fmt.Errorf("--join %s: a member with --tls cannot join a cluster without; leave --tls out, or name an https:// URL", text)
		}
		if !o.TLS && u.Scheme == "https" {
			return fmt.Errorf("--join %s: the cluster has TLS; add --tls, and --out with the directory that holds its authority", text)
		}
	}
	if len(o.Join) > 0 && o.TLS && o.Authority == nil {
		return ErrNoAuthority
	}
	return nil
}
