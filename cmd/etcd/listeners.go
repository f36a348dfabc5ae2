package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"go.uber.org/zap"

	"quorate/internal/certs"
	"quorate/internal/config"
	"quorate/internal/crash"
	"quorate/internal/descriptors"
	"quorate/internal/h2"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
	"quorate/internal/transport"
)

// clientPort is one port for clients. URLs of several schemes may share it.
type clientPort struct {
	l          net.Listener
	accepts    listen.Accepts
	grpc, http bool
}

// listen opens every socket, so that a port in use is reported before anything is changed.
func (p *process) listen(ctx context.Context) error {
	budget, err := descriptors.Divide(descriptors.Limit())
	if err != nil {
		return err
	}
	open := func(flag string, u url.URL, places listen.Places) (net.Listener, error) {
		return listen.Listen(ctx, u, listen.Options{Flag: flag, Secure: true, Places: places,
			ReusePort: p.cfg.ReusePort, ReuseAddress: p.cfg.ReuseAddress})
	}
	p.lg.Info("configuring peer listeners", zap.Strings("listen-peer-urls", config.URLStrings(p.cfg.ListenPeerURLs)))
	// Each kind of port has places of its own: clients must not keep out the other members,
	// nor whoever asks how the member is.
	peers, metrics := listen.NewPlaces(budget.Peers), listen.NewPlaces(budget.Metrics)
	for _, u := range p.cfg.ListenPeerURLs {
		l, err := open("listen-peer-urls", u, peers)
		if err != nil {
			return err
		}
		p.peer = append(p.peer, l)
		if !config.IsSecure(u) {
			continue
		}
		if p.security.Peer == nil || !p.security.Peer.CanListen() {
			return certs.CannotListen(l.Addr().String(), "--listen-peer-urls="+u.String()+" asks for TLS", certs.FlagNames{Prefix: "peer-"})
		}
		p.peer[len(p.peer)-1] = listen.NewListener(l, listen.Accepts{TLS: p.security.peerTLS(p.lg)})
	}
	p.lg.Info("configuring client listeners", zap.Strings("listen-client-urls", config.URLStrings(p.cfg.ListenClientURLs)))
	if err := p.openDoors(open, listen.NewPlaces(budget.Clients)); err != nil {
		return err
	}
	for _, u := range p.cfg.ListenMetricsURLs {
		l, err := open("listen-metrics-urls", u, metrics)
		if err != nil {
			return err
		}
		if config.IsSecure(u) {
			l = listen.NewListener(l, listen.Accepts{TLS: p.security.metricsTLS(p.lg)})
		}
		p.metrics = append(p.metrics, l)
	}
	return nil
}

// openDoors opens the client ports, one for all URLs with the same address.
func (p *process) openDoors(open func(string, url.URL, listen.Places) (net.Listener, error), places listen.Places) error {
	split := len(p.cfg.ListenClientHTTPURLs) > 0
	byAddress := map[string]*clientPort{}
	for _, x := range []struct {
		flag       string
		urls       []url.URL
		grpc, http bool
	}{
		{"listen-client-urls", p.cfg.ListenClientURLs, true, !split},
		{"listen-client-http-urls", p.cfg.ListenClientHTTPURLs, false, true},
	} {
		for _, u := range x.urls {
			_, addr := listen.Address(u)
			d := byAddress[addr]
			if d == nil {
				l, err := open(x.flag, u, places)
				if err != nil {
					return err
				}
				d = &clientPort{l: l, grpc: x.grpc, http: x.http}
				byAddress[addr] = d
				p.client = append(p.client, d)
			}
			if !config.IsSecure(u) {
				d.accepts.Plain = true
				continue
			}
			protocols := []string{"h2", "http/1.1"}
			if !d.http {
				protocols = protocols[:1]
			}
			d.accepts.TLS = p.security.clientTLS(p.lg, protocols...)
		}
	}
	return nil
}

func (p *process) closeListeners() {
	for _, ls := range [][]net.Listener{p.peer, p.metrics} {
		for _, l := range ls {
			l.Close()
		}
	}
	for _, d := range p.client {
		d.l.Close()
	}
}

func (p *process) serveHTTP(s *http.Server, l net.Listener) {
	s.Handler = crash.Handler(s.Handler) // net/http would recover the panic
	p.https = append(p.https, s)
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			p.report(fmt.Errorf("serve %s: %w", l.Addr(), err))
		}
	}()
}

func (p *process) serveGRPC(l net.Listener) {
	go func() {
		if err := p.grpc.Serve(l); err != nil && !errors.Is(err, h2.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			p.report(fmt.Errorf("serve %s: %w", l.Addr(), err))
		}
	}()
}

func (p *process) report(err error) {
	select {
	case p.broken <- err:
	default: // one reason to stop is enough
	}
}

func (p *process) servePeers() {
	h := p.member.PeerHandler()
	for _, l := range p.peer {
		p.lg.Info("serving peer traffic", zap.String("address", l.Addr().String()))
		p.serveHTTP(transport.HTTPServer(h, p.lg), l)
	}
}

func (p *process) serveMetrics() {
	for i, l := range p.metrics {
		p.lg.Info("serving metrics", zap.String("address", p.cfg.ListenMetricsURLs[i].String()))
		p.serveHTTP(httpapi.NewServer(httpapi.NewMetricsHandler(p.edge, p.cfg.Pages)), l)
	}
}

// serve starts serving on a client port. The gRPC server is already running.
func (p *process) serve(d *clientPort, handler http.Handler) {
	p.lg.Info("ready to serve client requests")
	traffic := "grpc+http"
	switch {
	case !d.http:
		traffic = "grpc"
	case !d.grpc:
		traffic = "http"
	}
	address := zap.String("address", d.l.Addr().String())
	if d.accepts.Plain {
		p.lg.Info("serving client traffic insecurely; this is strongly discouraged!", zap.String("traffic", traffic), address)
	}
	if d.accepts.TLS != nil {
		p.lg.Info("serving client traffic securely", zap.String("traffic", traffic), address)
	}
	switch {
	case !d.http:
		p.serveGRPC(listen.NewListener(d.l, d.accepts))
	case !d.grpc:
		p.serveHTTP(p.clientHTTP(d, handler), listen.NewListener(d.l, d.accepts))
	default:
		m := listen.NewMux(d.l, d.accepts)
		p.muxes = append(p.muxes, m)
		p.serveGRPC(m.GRPC())
		p.serveHTTP(p.clientHTTP(d, handler), m.HTTP())
		go func() {
			if err := m.Serve(); err != nil && !errors.Is(err, net.ErrClosed) {
				p.report(fmt.Errorf("serve %s: %w", d.l.Addr(), err))
			}
		}()
	}
}

// clientHTTP returns the HTTP server of a client port.
func (p *process) clientHTTP(d *clientPort, handler http.Handler) *http.Server {
	if d.accepts.TLS == nil {
		return httpapi.NewServer(handler)
	}
	var calls http.Handler
	if d.grpc {
		calls = p.grpc.Server
	}
	return httpapi.NewTLSServer(handler, calls, d.accepts.TLS.Config, p.cfg.Calls.MaxConcurrentStreams)
}
