// Command etcd runs one member of a Quorate cluster under etcd's name, flags,
// environment and configuration file.
//
// In: the command line, signals, sockets. Out: a running member, and at the end
// etcd's exit codes. Always true: nothing on disk changes before the
// configuration is checked and the listeners are open.
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
		lg.Warn("discovery cluster is full, falling back to proxy", zap.String("discovery-url", cfg.V2Discovery))
		return runProxy(ctx, cfg, starting)
	}
	if err != nil {
		return notStarted(cfg, err)
	}
	// Until here a signal ends the process at once: a start may wait for peers,
	// names or room on a disk, and can be broken off anywhere.
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

// stopTimeout bounds a stop beyond the time for handing over leadership. A disk
// that is full or stalls could hold it up for ever, and nothing depends on it:
// what was acknowledged is in the log.
const stopTimeout = 15 * time.Second

// stopWithin stops the process, but gives up after limit. A signal meanwhile does
// not wait for a graceful end. It reports whether the member has ended.
func (p *process) stopWithin(limit time.Duration, signals <-chan os.Signal) bool {
	stopped := make(chan struct{})
	go func() { p.stop(); close(stopped) }()
	select {
	case <-stopped:
		return true
	case <-signals:
		os.Exit(1)
	case <-time.After(limit):
		p.lg.Error("the member does not come to an end; ending the process", zap.String("data-dir", p.cfg.Member.DataDir))
	}
	return false
}

// end repeats the signal with its default action, so that whoever started the
// process sees that it ended by it. Process 1 of a container has no default
// action and exits plainly.
func end(s os.Signal) int {
	if os.Getpid() == 1 {
		return 0
	}
	signal.Reset(s)
	if n, ok := s.(syscall.Signal); ok && syscall.Kill(os.Getpid(), n) == nil {
		select {}
	}
	return 1
}
