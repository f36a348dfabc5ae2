// Package plan determines what a cluster needs on each of its hosts, and in which order
// to start it.
//
// In: the hosts by name and address, settings that all members share, the authority
// that signs certificates if there is one, the time. Out: files, each with its path on
// its host, and numbered steps with commands.
//
// Always true: nothing is read, written or contacted; apart from keys and certificates
// the same options give the same plan. Every value that is written to a unit, a YAML
// file or a command line was validated to contain no character with a meaning there, so
// nothing has to be escaped. A private key is in a file of mode 0600 and never in a
// step.
package plan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Format is how a member gets its settings.
type Format string

// A unit has them as flags, YAML in a file next to a short unit.
const (
	Unit Format = "unit"
	YAML Format = "yaml"
)

// Options say what to plan. Default has the values that need not be chosen.
type Options struct {
	Hosts      []Host
	Join       []string // client URLs of a running cluster that Hosts join; none: they found one
	Format     Format
	Token      string // distinguishes clusters that are founded from the same URLs
	DataDir    string // on the hosts
	ClientPort int
	PeerPort   int
	// HeartbeatMs and ElectionMs are in milliseconds; 0 omits the flag.
	HeartbeatMs, ElectionMs int

	TLS        bool
	CertDir    string     // on the hosts
	Years      int        // validity of new certificates, in years of 365 days
	Authority  *Authority // nil creates one
	KeepClient bool       // there already is a certificate for etcdctl
	Now        time.Time  // when new certificates are issued

	// Out is the directory in which the files will be, for the commands. Empty: they are
	// printed.
	Out string
}

// Default returns the usual options; Hosts and, with TLS, Now are missing.
func Default() Options {
	return Options{Format: Unit, Token: "etcd-cluster", DataDir: "/var/lib/etcd", ClientPort: 2379, PeerPort: 2380,
		CertDir: "/etc/etcd/pki", Years: 10}
}

// File is one file of the plan.
type File struct {
	Path    string // below Options.Out, with slashes
	Host    string // name of the host it is for; empty: it is not copied
	Dest    string // path on the host; empty: it is not copied
	Mode    uint32 // permission bits
	Content []byte
}

// Secret reports whether the file holds a private key.
func (f File) Secret() bool { return f.Mode&0o077 == 0 }

// Step is one step of the plan.
type Step struct {
	Title    string
	Text     string // explanation, or empty
	Commands []string
}

// Plan is what New returns.
type Plan struct {
	Files []File
	Steps []Step
	Notes []string // what to know before starting
}

// ErrNoAuthority is returned for hosts that are to join a cluster with TLS without the
// authority that signs for it.
var ErrNoAuthority = errors.New("the hosts need certificates of the authority that signs for the cluster")

// New validates the options and creates the plan. Its errors name the argument or flag
// of etcdutl cluster plan.
func New(o Options) (*Plan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &Plan{Notes: o.notes()}
	for _, h := range o.Hosts {
		p.Files = append(p.Files, o.memberFiles(h)...)
	}
	if o.TLS {
		files, err := o.certificates()
		if err != nil {
			return nil, err
		}
		p.Files = append(p.Files, files...)
	}
	p.Steps = o.steps()
	return p, nil
}

// notes returns what is not an error but should be known.
func (o Options) notes() []string {
	n := len(o.Hosts)
	switch {
	case len(o.Join) > 0:
		return nil
	case n == 1:
		return []string{"A cluster of one member loses its service with that host, and its data with that disk. Three members survive the loss of one."}
	case n == 2:
		return []string{"Two members stand still when either is lost: a majority must be left. Three survive the loss of one."}
	case n%2 == 0:
		return []string{fmt.Sprintf("%d members survive the loss of %d, as %d would: a majority must be left. An odd number is better.", n, (n-1)/2, n-1)}
	case n > 7:
		return []string{fmt.Sprintf("Each write waits for %d of %d members. Five or seven are enough for most.", n/2+1, n)}
	}
	return nil
}

func (o Options) scheme() string {
	if o.TLS {
		return "https"
	}
	return "http"
}

func (o Options) url(host string, port int) string {
	return o.scheme() + "://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// listen returns the URLs of one port to listen on. A member listens on addresses, so
// one whose host is given by name listens on all.
func (o Options) listen(h Host, port int, loopback bool) string {
	addr, err := netip.ParseAddr(h.Address)
	if err != nil {
		return o.url("0.0.0.0", port)
	}
	urls := o.url(h.Address, port)
	if loopback && addr != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		urls += "," + o.url("127.0.0.1", port)
	}
	return urls
}

// clientURLs returns where clients find the cluster: its members, and those that join
// it.
func (o Options) clientURLs() string {
	urls := append([]string(nil), o.Join...)
	for _, h := range o.Hosts {
		urls = append(urls, o.url(h.Address, o.ClientPort))
	}
	return strings.Join(urls, ",")
}

// known returns the client URLs that answer before this plan is carried out or, when it
// founds the cluster, after it.
func (o Options) known() string {
	if len(o.Join) > 0 {
		return strings.Join(o.Join, ",")
	}
	return o.clientURLs()
}
