// Command etcd runs one member of a Quorate cluster under etcd's name, flags,
// environment and configuration file.
//
// In: the command line, signals, sockets. Out: a running member, and at the end
// etcd's exit codes. Always true: nothing on disk changes before the
// configuration is checked and the listeners are open.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"

	"quorate/internal/config"
	"quorate/internal/listen"
	"quorate/internal/logging"
)

func main() { os.Exit(run()) }

func run() int {
	cfg, exit := config.Parse(os.Args, os.Environ(), os.Stdout, os.Stderr)
	if exit != nil {
		return exit.Code
	}
	defer cfg.Close()
	lg := cfg.Log()
	logging.SetGlobal(lg, cfg.LogLevel == "debug")

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	p, err := start(ctx, cfg)
	if err != nil {
		return cfg.FatalExit(err).Code
	}
	ready := p.member.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			p.serveClients()
			listen.NotifyReady(lg)
		case <-p.member.Failed():
			err := p.member.Err()
			p.stop()
			return cfg.FatalExit(err).Code
		case err := <-p.broken:
			lg.Error("listener failed", zap.Error(err))
			p.stop()
			return 1
		case s := <-signals:
			lg.Info("received signal; shutting down", zap.String("signal", s.String()))
			go func() {
				// A second signal does not wait for a graceful end.
				<-signals
				os.Exit(1)
			}()
			p.stop()
			return end(s)
		}
	}
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
