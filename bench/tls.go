package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"quorate/bench/lean"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

var tlsRows = []string{"tls.put.cpu", "tls.put.rate", "tls.get.cpu", "tls.get.rate", "tls.list.cpu", "tls.list.rate"}

// secureSide restarts the member of a side with a second client address that requires certificates, and connects
// to it.
func (r *run) secureSide(ctx context.Context, s *side) error {
	ca := pki.NewCA("bench")
	server, client := ca.Issue("server"), ca.Issue("client")
	file := func(name string) string { return filepath.Join(r.dir, s.name+"-"+name) }
	for name, content := range map[string][]byte{"ca.pem": ca.PEM, "server.pem": server.Cert, "server.key": server.Key} {
		if err := os.WriteFile(file(name), content, 0o600); err != nil {
			return err
		}
	}
	free, err := harness.FreeAddrs(1)
	if err != nil {
		return err
	}
	m := s.member()
	m.SetArgs(append([]string{
		fmt.Sprintf("--listen-client-urls=%s,https://%s", m.ClientURL(), free[0]),
		"--cert-file=" + file("server.pem"), "--key-file=" + file("server.key"),
		"--trusted-ca-file=" + file("ca.pem"), "--client-cert-auth",
	}, serverFlags...)...)
	s.secure, s.options = free[0], lean.Options{TLS: pki.Client(ca.PEM, &client)}
	if _, err := r.restart(ctx, s, true); err != nil {
		return err
	}
	return agree(ctx, s)
}

func (r *run) tls(ctx context.Context) {
	const getKeys, listKeys = 10_000, 10_000
	failed := len(r.res.failed)
	r.step(ctx, tlsRows, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		if err := r.secureSide(ctx, s); err != nil {
			return nil, err
		}
		if err := preload(ctx, s.clients, "read", 0, getKeys, 256, 0); err != nil {
			return nil, err
		}
		return nil, preload(ctx, s.clients, "list", 0, listKeys, 1024, 0)
	})
	if len(r.res.failed) > failed {
		return
	}
	for i, load := range []func(ctx context.Context, s *side) (outcome, error){
		func(ctx context.Context, s *side) (outcome, error) {
			return r.puts(ctx, s, r.scale.clients, r.scale.span)
		},
		func(ctx context.Context, s *side) (outcome, error) { return r.gets(ctx, s, getKeys, false) },
		func(ctx context.Context, s *side) (outcome, error) {
			return closedLoop(ctx, s.clients, 1, r.scale.span, methodRange, func(b []byte, _ int) []byte {
				return rangeRequest(b, []byte("list/"), rangeOptions{end: []byte("list0")})
			})
		},
	} {
		cpuRow, rateRow := tlsRows[2*i], tlsRows[2*i+1]
		r.step(ctx, []string{cpuRow, rateRow}, r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			o, cpu, err := r.loaded(s, func() (outcome, error) { return load(ctx, s) })
			each := micros(cpu, max(1, o.ops))
			if cpuRow == "tls.list.cpu" {
				each /= 1e3
			}
			return map[string]float64{cpuRow: each, rateRow: o.perSecond()}, err
		})
	}
}
