package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"quorate/internal/listen"
	"quorate/internal/logging"
	"quorate/internal/proxy/grpcproxy"
)

func grpcProxyCommand() *cobra.Command {
	proxy := &cobra.Command{Use: "grpc-proxy <subcommand>", Short: "grpc-proxy related command"}
	var cfg grpcproxy.Config
	start := &cobra.Command{Use: "start", Short: "start the grpc proxy"}
	cfg.AddFlags(start.Flags())
	start.RunE = program(func() int { return runGRPCProxy(cfg, start.Flags()) })
	proxy.AddCommand(start)
	return proxy
}

// runGRPCProxy serves until a signal arrives and returns the exit code.
func runGRPCProxy(cfg grpcproxy.Config, given *pflag.FlagSet) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := cfg.Settle(given); err != nil {
		return fail(err)
	}
	level := "info"
	if cfg.Debug {
		level = "debug"
	}
	lg, closeLog, err := logging.New(logging.Options{Level: level})
	if err != nil {
		return fail(err)
	}
	defer closeLog()
	logging.SetGlobal(lg, cfg.Debug)

	starting := listen.BeginStart()
	defer starting.End()
	p, err := grpcproxy.Open(context.Background(), cfg, lg, starting.Status)
	if err != nil {
		return fail(err)
	}
	defer p.Close()
	// Until here a signal ends the process at once: waiting for a cluster can be
	// interrupted anywhere.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	p.Serve()
	starting.Ready(lg)
	select {
	case err := <-p.Broken():
		return fail(err)
	case s := <-signals:
		lg.Info("received signal; shutting down", zap.String("signal", s.String()))
		go func() {
			// A second signal does not wait for a graceful shutdown.
			<-signals
			os.Exit(1)
		}()
		p.Close()
		return end(s)
	}
}
