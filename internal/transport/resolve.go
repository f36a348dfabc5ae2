package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/membership"
)

// resolveRetry is the interval between attempts to resolve a host name:
// while a cluster is being started, names may take some time to appear.
const resolveRetry = time.Second

// SameURLs reports whether two lists hold the same URLs in any order: first as
// text, then with host names replaced by addresses, retrying until ctx is
// done. If they differ, the error says why.
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

// normalURLs parses URLs in canonical form.
func normalURLs(list []string) ([]*url.URL, error) {
	var us []*url.URL
	for _, s := range list {
		u, err := url.Parse(membership.CanonicalURL(s))
		if err != nil {
			return nil, fmt.Errorf("failed to parse string to URL: %q", s)
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
// localhost are left unchanged.
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
			was := *u
			u.Host = net.JoinHostPort(addrs[0].String(), port)
			lg.Info("resolved URL Host", zap.String("url", was.String()), zap.String("host", was.Host), zap.String("resolved-addr", u.Host))
			return nil
		}
		if err == nil {
			err = errors.New("no addresses")
		}
		lg.Warn("failed to resolve URL Host", zap.String("url", u.String()), zap.String("host", u.Host),
			zap.Duration("retry-interval", resolveRetry), zap.Error(err))
		select {
		case <-ctx.Done():
			return err
		case <-clock.After(resolveRetry):
		}
	}
}
