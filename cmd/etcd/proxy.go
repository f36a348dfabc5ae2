package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"quorate/internal/certs"
	"quorate/internal/config"
	"quorate/internal/descriptors"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
	"quorate/internal/membership"
	"quorate/internal/proxy/httpproxy"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
)

// proxyMembersTimeout bounds the request to one member for the list of all members.
const proxyMembersTimeout = 10 * time.Second

// runProxy runs a proxy, which is not a member but forwards HTTP requests to the members,
// until a signal arrives.
func runProxy(ctx context.Context, cfg *config.Config, starting *listen.Starting) int {
	starting.Status("requesting the list of members")
	p, err := startProxy(ctx, cfg)
	if err != nil {
		return notStarted(cfg, err)
	}
	defer p.closeListeners()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	starting.Ready(p.lg)
	select {
	case err := <-p.broken:
		return cfg.Fatal("listener failed", err).Code
	case s := <-signals:
		p.lg.Info("received signal; shutting down", zap.String("signal", s.String()))
		ctx, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		for _, s := range p.https {
			if s.Shutdown(ctx) != nil {
				s.Close() // watches do not end by themselves
			}
		}
		return end(s)
	}
}

// startProxy opens the client URLs once the members are known.
func startProxy(ctx context.Context, cfg *config.Config) (_ *process, err error) {
	p := &process{cfg: cfg, lg: cfg.Log(), broken: make(chan error, 16)}
	if p.security, err = openSecurity(cfg); err != nil {
		return nil, err
	}
	toMembers, err := p.security.dialMembers(cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.closeListeners()
		}
	}()
	maxConns, err := descriptors.ForProxy(descriptors.Limit())
	if err != nil {
		return nil, err
	}
	err = p.openDoors(func(flag string, u url.URL, p listen.Places) (net.Listener, error) {
		return listen.Listen(ctx, u, listen.Options{Flag: flag, Secure: true, Places: p, ReusePort: cfg.ReusePort, ReuseAddress: cfg.ReuseAddress})
	}, listen.NewPlaces(maxConns))
	if err != nil {
		return nil, err
	}
	peers, err := proxyPeers(ctx, cfg)
	if err != nil {
		return nil, err
	}
	o, to := cfg.HTTPProxy()
	client := peerapi.NewClient(transport.RequestClient(p.security.DialPeers(), to.DialTimeout))
	o.Peers = peers
	o.Members = func(ctx context.Context, urls []string) ([]membership.Member, error) {
		ms, _, err := client.Members(ctx, urls, proxyMembersTimeout)
		return ms, err
	}
	to.TLS = toMembers
	o.Transport = httpproxy.NewTransport(to)
	proxy, err := httpproxy.New(o)
	if err != nil {
		return nil, err
	}
	p.lg.Info("proxy started", zap.String("data-dir", cfg.Member.DataDir), zap.Bool("readonly", cfg.Proxy == config.ProxyReadOnly), zap.Strings("peer-urls", peers))
	go proxy.Run(ctx)
	handler := httpapi.NewProxyHandler(proxy, cfg.Pages.CORS)
	if cfg.Proxy == config.ProxyReadOnly {
		handler = httpproxy.ReadOnly(handler)
	}
	for _, d := range p.client {
		d.grpc, d.http = false, true
		p.serve(d, handler)
	}
	return p, nil
}

// proxyPeers returns the peer URLs of the members. Those that an earlier run has saved take
// precedence over the flags.
func proxyPeers(ctx context.Context, cfg *config.Config) ([]string, error) {
	if kept, err := httpproxy.Remembered(cfg.ProxyDir()); err != nil || len(kept) > 0 {
		return kept, err
	}
	cluster, err := cfg.InitialCluster, error(nil)
	switch {
	case cfg.V2Discovery.URL != "":
		cluster, err = cfg.V2Discovery.Observe(ctx)
	case cfg.SRV.Domain != "":
		cluster, err = cfg.SRV.Peers()
	}
	if err != nil {
		return nil, fmt.Errorf("find the members for --proxy: %w", err)
	}
	members, err := membership.ParseInitialCluster(cluster)
	if err != nil {
		return nil, err
	}
	var urls []string
	for _, m := range members {
		urls = append(urls, m.PeerURLs...)
	}
	if len(urls) == 0 {
		return nil, errors.New("--proxy: no member to forward requests to: give --initial-cluster, --discovery or --discovery-srv")
	}
	slices.Sort(urls)
	return urls, nil
}

// dialMembers returns the TLS settings for the client URLs of members: the files for
// clients or, failing that, those for peers.
func (s security) dialMembers(cfg *config.Config) (*tls.Config, error) {
	store := s.Client
	if t := cfg.ClientTLS; store == nil && (!t.Empty() || t.TrustedCAFile != "") {
		var err error
		if store, err = certs.Open(cfg.Protocols.Options(t, "", cfg.Log())); err != nil {
			return nil, err
		}
	}
	if store == nil {
		store = s.Peer
	}
	if store == nil {
		return nil, nil
	}
	return store.Client(), nil
}
