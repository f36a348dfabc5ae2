package transport

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// resolveRetry is the pause between two tries to resolve a host name: in a
// cluster that just starts, names may take a while to appear.
const resolveRetry = time.Second

// SameURLs reports whether two lists hold the same URLs in any order: first as
// text, then with host names replaced by addresses, retried until ctx ends. If
// not, the error says why.
func SameURLs(ctx context.Context, lg *zap.Logger, a, b []string) (bool, error) {
	if len(a) != len(b) {
		return false, fmt.Errorf("len(%q) != len(%q)", a, b)
	}
	pa, err := normalURLs(a)
	if err != nil {
		return false, err
	}
	pb, err := normalURLs(b)
	if err != nil {
		return false, err
	}
	if slices.Equal(texts(pa), texts(pb)) {
		return true, nil
	}
	for _, us := range [][]*url.URL{pa, pb} {
		for _, u := range us {
			if err := resolve(ctx, lg, u); err != nil {
				return false, fmt.Errorf("failed to resolve %q (%w)", u, err)
			}
		}
	}
	ta, tb := texts(pa), texts(pb)
	for i := range ta {
		if ta[i] != tb[i] {
			return false, fmt.Errorf("resolved urls: %q != %q", ta[i], tb[i])
		}
	}
	return true, nil
}

// normalURLs parses URLs; an address in the host is brought to its usual form.
func normalURLs(list []string) ([]*url.URL, error) {
	var us []*url.URL
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("failed to parse string to URL: %q", s)
		}
		if host, port, err := net.SplitHostPort(u.Host); err == nil {
			if ip := net.ParseIP(host); ip != nil {
				u.Host = net.JoinHostPort(ip.String(), port)
			}
		}
		us = append(us, u)
	}
	return us, nil
}

func texts(us []*url.URL) []string {
	var ss []string
	for _, u := range us {
		ss = append(ss, u.String())
	}
	slices.Sort(ss)
	return ss
}

// resolve replaces the host of u by its first address. Unix sockets and
// localhost stay as they are.
func resolve(ctx context.Context, lg *zap.Logger, u *url.URL) error {
	if strings.HasPrefix(u.Scheme, "unix") {
		return nil
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return err
	}
	if host == "localhost" || net.ParseIP(host) != nil {
		return nil
	}
	for {
		addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
		if err == nil && len(addrs) > 0 {
			u.Host = net.JoinHostPort(addrs[0].String(), port)
			return nil
		}
		lg.Warn("failed to resolve URL host", zap.String("url", u.String()), zap.Error(err))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(resolveRetry):
		}
	}
}
