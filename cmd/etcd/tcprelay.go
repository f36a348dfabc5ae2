package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"quorate/internal/descriptors"
	"quorate/internal/listen"
	"quorate/internal/logging"
	"quorate/internal/proxy/tcprelay"
)

func gatewayCommand() *cobra.Command {
	gateway := &cobra.Command{Use: "gateway <subcommand>", Short: "gateway related command"}
	var cfg tcprelay.Config
	start := &cobra.Command{Use: "start", Short: "start the gateway", RunE: program(func() int { return runGateway(cfg) })}
	cfg.AddFlags(start.Flags())
	gateway.AddCommand(start)
	return gateway
}

// runGateway forwards connections until a signal arrives, and returns the exit code.
// Mistakes in the flags go to standard output, as in etcd's gateway.
func runGateway(cfg tcprelay.Config) int {
	fail := func(w io.Writer, err error) int {
		fmt.Fprintln(w, err)
		return 1
	}
	lg, closeLog, err := logging.New(logging.Options{})
	if err != nil {
		return fail(os.Stderr, err)
	}
	defer closeLog()
	lg.Info("Running: ", zap.Strings("args", os.Args))

	starting := listen.BeginStart()
	defer starting.End()
	if domain := cfg.Discovery.Domain; domain != "" {
		starting.Status("looking for the members in the records of " + domain)
	}
	found, err := cfg.Discover(lg)
	if err != nil {
		return fail(os.Stderr, err)
	}
	endpoints, err := cfg.Check(found)
	if err != nil {
		return fail(os.Stdout, err)
	}
	l, err := listen.TCP(context.Background(), "listen-addr", cfg.Listen)
	if err != nil {
		return fail(os.Stderr, err)
	}
	r := tcprelay.New(tcprelay.Options{Endpoints: endpoints, RetryDelay: cfg.RetryDelay, MaxConns: tcprelay.MaxConns(descriptors.Limit()), Logger: lg})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	starting.Ready(lg)
	broken := make(chan error, 1)
	go func() { broken <- r.Serve(l) }()
	select {
	case err := <-broken:
		r.Close()
		return fail(os.Stderr, err)
	case s := <-signals:
		lg.Info("received signal; shutting down", zap.String("signal", s.String()))
		r.Close()
		return end(s)
	}
}
