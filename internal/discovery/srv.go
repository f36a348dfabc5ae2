package discovery

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.uber.org/zap"
)

// SRV finds the founders in the records _etcd-server-ssl._tcp.domain (peers by https) and
// _etcd-server._tcp.domain (http); with a suffix the services are called
// etcd-server-ssl-suffix and etcd-server-suffix. The record that points to this host, under
// one of the advertised URLs, gets name; the others get numbers. One of the two sets of
// records may be missing, but not both.
func SRV(lg *zap.Logger, domain, suffix, name string, advertised []url.URL) (string, error) {
	return lookup(lg, domain, suffix, name, advertised, getCluster)
}

// SRVPeers is SRV for a caller that is not one of the founders.
func SRVPeers(lg *zap.Logger, domain, suffix string) (string, error) {
	found, err := founders(lg, domain, suffix, "", nil, getCluster)
	return strings.Join(found, ","), err
}

func getCluster(scheme, service, name, dns string, urls []url.URL) ([]string, error) {
	return srv.GetCluster(scheme, service, name, dns, urls)
}

func lookup(lg *zap.Logger, domain, suffix, name string, advertised []url.URL,
	get func(scheme, service, name, dns string, urls []url.URL) ([]string, error)) (string, error) {
	found, err := founders(lg, domain, suffix, name, advertised, get)
	if err != nil {
		return "", err
	}
	for _, pair := range found {
		if n, _, _ := strings.Cut(pair, "="); n == name {
			return strings.Join(found, ","), nil
		}
	}
	return "", fmt.Errorf("cannot find local etcd member %q in SRV records", name)
}

// founders returns the parts of the initial cluster from both sets of records.
func founders(lg *zap.Logger, domain, suffix, name string, advertised []url.URL,
	get func(scheme, service, name, dns string, urls []url.URL) ([]string, error)) ([]string, error) {
	if suffix != "" {
		suffix = "-" + suffix
	}
	var found []string
	var failed error
	for _, s := range []struct{ scheme, service string }{{"https", "etcd-server-ssl" + suffix}, {"http", "etcd-server" + suffix}} {
		list, err := get(s.scheme, s.service, name, domain, advertised)
		if err != nil {
			failed = errors.Join(failed, err)
		} else {
			found = append(found, list...)
		}
		lg.Info("get cluster for etcd-server SRV", zap.String("service-scheme", s.scheme), zap.String("service-name", s.service),
			zap.String("server-name", name), zap.String("discovery-srv", domain), zap.Strings("found-cluster", list), zap.Error(err))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("error setting up initial cluster: %w", errors.Join(errors.New("no SRV records of "+domain), failed))
	}
	return found, nil
}
