package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"quorate/internal/discovery"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
	"quorate/internal/logging"
	"quorate/internal/proxy/tcprelay"
)

// gatewayFlags are those of `etcd gateway start`.
type gatewayFlags struct {
	listen            string
	endpoints         []string
	domain, suffix    string
	insecureDiscovery bool
	trustedCAFile     string
	retryDelay        time.Duration
}

func gatewayCommand() *cobra.Command {
	gateway := &cobra.Command{Use: "gateway <subcommand>", Short: "gateway related command"}
	var g gatewayFlags
	start := &cobra.Command{Use: "start", Short: "start the gateway", RunE: program(func() int { return g.run() })}
	f := start.Flags()
	f.StringVar(&g.listen, "listen-addr", "127.0.0.1:23790", "listen address")
	f.StringVar(&g.domain, "discovery-srv", "", "DNS domain used to bootstrap initial cluster")
	f.StringVar(&g.suffix, "discovery-srv-name", "", "service name to query when using DNS discovery")
	f.BoolVar(&g.insecureDiscovery, "insecure-discovery", false, "accept insecure SRV records")
	f.StringVar(&g.trustedCAFile, "trusted-ca-file", "", "path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.")
	f.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	f.DurationVar(&g.retryDelay, "retry-delay", time.Minute, "duration of delay before retrying failed endpoints")
	gateway.AddCommand(start)
	return gateway
}

// reservedFiles are left for what is not a passed-on connection: the listener,
// name servers, probes, and one more connection that is told to go elsewhere.
const reservedFiles = 64

// run passes connections on until a signal, and returns the exit code. What is
// wrong with the flags goes to standard output, as etcd's gateway has it.
func (g *gatewayFlags) run() int {
	lg, closeLog, err := logging.New(logging.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer closeLog()
	lg.Info("Running: ", zap.Strings("args", os.Args))

	starting := listen.BeginStart()
	defer starting.End()
	if g.domain != "" {
		starting.Status("looking for the members in the records of " + g.domain)
	}
	endpoints, err := g.discover(lg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if len(endpoints) == 0 {
		if endpoints, err = tcprelay.ParseEndpoints(g.endpoints); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	err = tcprelay.SystemResolver.Check(g.listen, endpoints)
	if err == nil && g.retryDelay < 0 {
		err = errors.New("--retry-delay must not be negative")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	l, err := listen.TCP(context.Background(), "listen-addr", g.listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r := tcprelay.New(tcprelay.Options{Endpoints: endpoints, RetryDelay: g.retryDelay, MaxConns: maxRelayed(httpapi.FileLimit()), Logger: lg})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	starting.Ready(lg)
	broken := make(chan error, 1)
	go func() { broken <- r.Serve(l) }()
	select {
	case err := <-broken:
		r.Close()
		fmt.Fprintln(os.Stderr, err)
		return 1
	case s := <-signals:
		lg.Info("received signal; shutting down", zap.String("signal", s.String()))
		r.Close()
		return end(s)
	}
}

// discover asks DNS for the members, if a domain is given. None that can be used
// is no error: then --endpoints count.
func (g *gatewayFlags) discover(lg *zap.Logger) ([]net.SRV, error) {
	if g.domain == "" {
		return nil, nil
	}
	_, found, err := discovery.Clients{Domain: g.domain, Suffix: g.suffix, Insecure: g.insecureDiscovery, TrustedCAFile: g.trustedCAFile}.Find(lg)
	if err == nil && len(found) == 0 {
		lg.Warn("no discovered endpoint can be used; using --endpoints", zap.String("srv-server", g.domain), zap.Strings("endpoints", g.endpoints))
	}
	return found, err
}

// maxRelayed is how many connections, of two files each, a process that may open
// files of them can pass on; 0 files means that the limit is not known.
func maxRelayed(files uint64) int {
	if files == 0 {
		return tcprelay.DefaultMaxConns
	}
	return int(min(max(int64(min(files, 1<<40))-reservedFiles, 2)/2, tcprelay.DefaultMaxConns))
}
