package membership

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"quorate/internal/ids"
)

// CanonicalURL returns u in the form in which URLs are compared: an address, a name
// and a port can each be spelled in several ways. URLs are stored, sent and hashed into
// ids as they were given, because members of etcd compare the text.
func CanonicalURL(u string) string {
	p, err := url.Parse(u)
	if err != nil || p.Hostname() == "" || strings.HasPrefix(p.Scheme, "unix") {
		return u
	}
	host, port := strings.ToLower(p.Hostname()), p.Port()
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		port = strconv.FormatUint(n, 10)
	}
	if port != "" {
		host += ":" + port
	}
	p.Host = host
	return p.String()
}

// AbsentURLs returns the distinct URLs of a that are not in b, in order.
func AbsentURLs(a, b []string) []string {
	var out []string
	for _, u := range a {
		if !hasURL(b, u) && !hasURL(out, u) {
			out = append(out, u)
		}
	}
	return out
}

func hasURL(list []string, u string) bool {
	return slices.ContainsFunc(list, func(o string) bool { return CanonicalURL(o) == CanonicalURL(u) })
}

// CheckURLs rejects peer URLs for the member id that another member has, in any
// spelling. It is for proposals only: apply compares the text, because all members of a
// cluster, members of etcd included, must decide alike.
func CheckURLs(ms []Member, id ids.Member, urls []string) error {
	for _, m := range ms {
		if m.ID != id && slices.ContainsFunc(urls, func(u string) bool { return hasURL(m.PeerURLs, u) }) {
			return ErrPeerURLExists
		}
	}
	return nil
}
