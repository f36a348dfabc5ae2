// Command etcd runs one member of a Quorate cluster under etcd's name, flags, environment
// and configuration file.
//
// In: the command line, signals, sockets. Out: a running member, and etcd's exit codes when
// it exits. Always true: nothing on disk changes before the configuration is validated and
// the listeners are open.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"quorate/internal/config"
	"quorate/internal/crash"
	"quorate/internal/discovery"
	"quorate/internal/listen"
	"quorate/internal/logging"
	"quorate/internal/server"
)

func main() { os.Exit(run()) }

func run() int {
	if code, selected := runSubcommand(os.Args[1:], os.Stdout, os.Stderr); selected {
		return code
	}
	spareProc()
	cfg, exit := config.Parse(os.Args, os.Environ(), os.Stdout, os.Stderr)
	if exit != nil {
		return exit.Code
	}
	defer cfg.Close()
	lg := cfg.Log()
	logging.SetGlobal(lg, cfg.Logging.Level == "debug")
	crash.SetLogger(lg)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	starting := listen.BeginStart()
	defer starting.End()

	if cfg.MemoryMlock {
		if err := lockMemory(); err != nil {
			return cfg.FatalExit(err).Code
		}
	}
	go paceGC(ctx)
	proxy, err := cfg.CheckDataDir()
	if err != nil {
		return cfg.FatalExit(err).Code
	}
	if proxy {
		return runProxy(ctx, cfg, starting)
	}
	p, err := start(ctx, cfg, starting)
	if errors.Is(err, discovery.ErrFull) && cfg.FallsBackToProxy() {
		lg.Warn("discovery cluster is full, falling back to proxy", zap.String("discovery-url", cfg.V2Discovery.URL))
		return runProxy(ctx, cfg, starting)
	}
	if err != nil {
		return notStarted(cfg, err)
	}
	// Until here a signal ends the process at once: a start may wait for peers, names or
	// disk space, and can be interrupted anywhere.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ready := p.member.Ready()
	starting.Follow(p.member.StartStatus)
	for {
		select {
		case <-ready:
			ready = nil
			p.serveClients()
			starting.Ready(lg)
		case <-p.member.Failed():
			err := p.member.Err()
			p.stopWithin(cfg.Member.RequestTimeout()+stopTimeout, signals)
			if errors.Is(err, server.ErrRemoved) {
				return 0
			}
			return cfg.Fatal("the member has failed", err).Code
		case err := <-p.broken:
			p.stopWithin(cfg.Member.RequestTimeout()+stopTimeout, signals)
			return cfg.Fatal("listener failed", err).Code
		case s := <-signals:
			lg.Info("received signal; shutting down", zap.String("signal", s.String()))
			starting.End()
			target, downgrade := p.member.Versions.DowngradeTarget()
			if p.stopWithin(cfg.Member.RequestTimeout()+stopTimeout, signals) && downgrade {
				leaver{p.memberConfig, lg, notifyStopping}.leave(target, signals)
			}
			return end(s)
		}
	}
}

// stopTimeout bounds a shutdown, not counting the transfer of leadership. A full or stalled
// disk could block it forever, and nothing depends on it: acknowledged writes are in the
// log.
const stopTimeout = 15 * time.Second

// stopWithin shuts the process down, but gives up after limit, or at once when a signal
// arrives. It reports whether the member has stopped.
func (p *process) stopWithin(limit time.Duration, signals <-chan os.Signal) bool {
	stopped := make(chan struct{})
	go func() { p.stop(); close(stopped) }()
	select {
	case <-stopped:
		return true
	case <-signals:
		os.Exit(1)
	case <-time.After(limit):
		p.lg.Error("shutdown timed out; exiting", zap.String("data-dir", p.cfg.Member.DataDir))
	}
	return false
}
