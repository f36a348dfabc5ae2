package ctl

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// globalFlags are the flags of the root command.
type globalFlags struct {
	endpoints []string
	format    string // --write-out
	hex       bool
	debug     bool

	dialTimeout      time.Duration
	commandTimeout   time.Duration
	keepAliveTime    time.Duration
	keepAliveTimeout time.Duration
	maxRequestBytes  int
	maxRecvBytes     int

	insecureTransport  bool
	insecureSkipVerify bool
	cert, key, cacert  string

	user, password, token string

	discoverySRV      string
	discoverySRVName  string
	insecureDiscovery bool
}

func (g *globalFlags) register(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "where the members listen, comma separated: host:port, http://, https:// or unix://")
	fs.StringVarP(&g.format, "write-out", "w", "simple", "output format: fields, json, protobuf, simple or table")
	oneOf(root, "write-out", "fields", "json", "protobuf", "simple", "table")
	fs.BoolVar(&g.hex, "hex", false, `print keys and values as \x66\x6f\x6f, and IDs of json and fields in hexadecimal`)
	fs.BoolVar(&g.debug, "debug", false, "print the effective settings and gRPC's log on standard error")

	fs.DurationVar(&g.dialTimeout, "dial-timeout", 2*time.Second, "timeout for connecting and authenticating")
	fs.DurationVar(&g.commandTimeout, "command-timeout", 5*time.Second, "timeout for one request, not counting the connection")
	fs.DurationVar(&g.keepAliveTime, "keepalive-time", 2*time.Second, "ping the server after a connection has been idle for this time")
	fs.DurationVar(&g.keepAliveTimeout, "keepalive-timeout", 6*time.Second, "close a connection if a ping is not answered within this time")
	fs.IntVar(&g.maxRequestBytes, "max-request-bytes", 0, "largest request to send, in bytes (0: 2 MiB)")
	fs.IntVar(&g.maxRecvBytes, "max-recv-bytes", 0, "largest answer to accept, in bytes (0: 2147483647)")

	fs.BoolVar(&g.insecureTransport, "insecure-transport", true, "do not use TLS for endpoints without https://")
	fs.BoolVar(&g.insecureSkipVerify, "insecure-skip-tls-verify", false, "accept any server certificate (only for tests)")
	fs.StringVar(&g.cert, "cert", "", "file with the client's TLS certificate")
	fs.StringVar(&g.key, "key", "", "file with the client's TLS key")
	fs.StringVar(&g.cacert, "cacert", "", "file with the CA certificates that servers are verified against")

	fs.StringVar(&g.user, "user", "", "name[:password] to authenticate as (asks for a password if there is none)")
	fs.StringVar(&g.password, "password", "", "password for --user, which is then the name alone")
	fs.StringVar(&g.token, "auth-jwt-token", "", "JSON Web Token to authenticate with, instead of --user and --password")

	fs.StringVarP(&g.discoverySRV, "discovery-srv", "d", "", "domain whose SRV records list the endpoints")
	fs.StringVar(&g.discoverySRVName, "discovery-srv-name", "", "suffix of the SRV service name")
	fs.BoolVar(&g.insecureDiscovery, "insecure-discovery", true, "accept SRV records of endpoints without TLS")
}

const envPrefix = "ETCDCTL"

// envName returns the variable of a flag: ETCDCTL_DIAL_TIMEOUT for dial-timeout.
func envName(flag string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// flagsFromEnv sets the flags of fs that are not on the command line from their variables.
// A variable together with its own flag is an error, because one of the two would be
// ignored silently; an unknown ETCDCTL_ variable is logged as a warning. Variables in own
// belong to the command and are left to it.
func (a *app) flagsFromEnv(fs *pflag.FlagSet, own ...string) error {
	onCommandLine := map[string]bool{}
	used := map[string]bool{}
	for _, name := range own {
		used[name] = true
	}
	fs.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		if f.Changed {
			onCommandLine[name] = true
			return
		}
		v := a.Getenv(name)
		if v == "" {
			return
		}
		used[name] = true
		if err := fs.Set(f.Name, v); err != nil {
			a.lg.Warn("ignored environment variable with an invalid value", zap.String("environment-variable", name), zap.Error(err))
		}
	})

	for _, e := range a.Env {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case used[name]:
		case onCommandLine[name]:
			a.logFatal("conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))",
				zap.String("environment-variable", name))
			return fail(exitError, nil)
		case strings.HasPrefix(name, envPrefix+"_"):
			a.lg.Warn("unrecognized environment variable", zap.String("environment-variable", e))
		}
	}
	return nil
}

// stay keeps a fatal log line from exiting the process: Run returns the code.
type stay struct{}

func (stay) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {}

func (a *app) logFatal(msg string, fields ...zap.Field) {
	a.lg.WithOptions(zap.WithFatalHook(stay{}), zap.AddCallerSkip(1)).Fatal(msg, fields...)
}

// printSettings prints what --debug shows before the command starts.
func (a *app) printSettings(fs *pflag.FlagSet) {
	fs.VisitAll(func(f *pflag.Flag) {
		fmt.Fprintf(a.Stderr, "%s=%v\n", envName(f.Name), f.Value)
	})
}
