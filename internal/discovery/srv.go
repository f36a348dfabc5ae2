package discovery

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.uber.org/zap"
)

// SRV is a DNS domain whose records name the founders: _etcd-server-ssl._tcp.domain (peers
// by https) and _etcd-server._tcp.domain (http); with a suffix the services are called
// etcd-server-ssl-suffix and etcd-server-suffix.
type SRV struct {
	Domain string // empty: not used
	Suffix string
	Logger *zap.Logger

	get func(scheme, service, name, dns string, urls []url.URL) ([]string, error) // nil is DNS
}

// Founders returns the initial cluster. The record that points to this host, under one of
// the advertised URLs, gets name; the others get numbers. One of the two sets of records may
// be missing, but not both.
func (s SRV) Founders(name string, advertised []url.URL) (string, error) {
	found, err := s.founders(name, advertised)
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

// Peers is Founders for a caller that is not one of them.
func (s SRV) Peers() (string, error) {
	found, err := s.founders("", nil)
	return strings.Join(found, ","), err
}

// founders returns the parts of the initial cluster from both sets of records.
func (s SRV) founders(name string, advertised []url.URL) ([]string, error) {
	get, suffix := s.get, s.Suffix
	if get == nil {
		get = func(scheme, service, name, dns string, urls []url.URL) ([]string, error) {
			return srv.GetCluster(scheme, service, name, dns, urls)
		}
	}
	if suffix != "" {
		suffix = "-" + suffix
	}
	var found []string
	var failed error
	for _, kind := range []struct{ scheme, service string }{{"https", "etcd-server-ssl" + suffix}, {"http", "etcd-server" + suffix}} {
		list, err := get(kind.scheme, kind.service, name, s.Domain, advertised)
		if err != nil {
			failed = errors.Join(failed, err)
		} else {
			found = append(found, list...)
		}
		s.Logger.Info("get cluster for etcd-server SRV", zap.String("service-scheme", kind.scheme), zap.String("service-name", kind.service),
			zap.String("server-name", name), zap.String("discovery-srv", s.Domain), zap.Strings("found-cluster", list), zap.Error(err))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("error setting up initial cluster: %w", errors.Join(errors.New("no SRV records of "+s.Domain), failed))
	}
	return found, nil
}
