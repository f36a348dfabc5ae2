package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"quorate/internal/discovery"
	"quorate/internal/logging"
)

// Exit asks the caller to exit the process; everything has been printed.
type Exit struct{ Code int }

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the configuration is wrong, or the member cannot start
	exitUsage = 2 // the command line cannot be read
)

const envPrefix = "ETCD_"

// supportedArchs are those on which etcd runs without ETCD_UNSUPPORTED_ARCH.
var supportedArchs = []string{"amd64", "arm64", "ppc64le", "s390x"}

// note is a log line from before the logger exists.
type note struct {
	level  zapcore.Level
	msg    string
	fields []zap.Field
}

func (c *Config) warn(msg string, fields ...zap.Field) {
	c.notes = append(c.notes, note{zapcore.WarnLevel, msg, fields})
}

// parser is one call of Parse.
type parser struct {
	args           []string // as os.Args: the first is the program
	environ        []string // as os.Environ
	stdout, stderr io.Writer
	early          *zap.Logger // for lines from before the logging flags are known
	hostIP         func() (string, error)
	hostToward     func(target string) (string, error)
	goarch         string
}

// Parse reads the configuration from args, the process's arguments beginning with the
// program's name (os.Args), and environ (os.Environ). It writes help, version and errors to
// stdout and stderr, and log lines to where the logging flags say. If exit is not nil, the
// caller exits with its code; otherwise c is complete and validated, and c.Log() is ready.
//
// Precedence is etcd's: a configuration file alone, or else flags, then environment
// variables, then defaults.
func Parse(args, environ []string, stdout, stderr io.Writer) (c *Config, exit *Exit) {
	p := &parser{args: args, environ: environ, stdout: stdout, stderr: stderr, hostIP: defaultHostIP, hostToward: hostToward, goarch: runtime.GOARCH}
	return p.run()
}

func (p *parser) run() (*Config, *Exit) {
	var err error
	if p.early, _, err = logging.New(logging.Options{Stdout: p.stdout, Stderr: p.stderr}); err != nil {
		fmt.Fprintf(p.stdout, "error creating zap logger %v", err)
		return nil, &Exit{exitError}
	}
	if exit := p.checkArch(); exit != nil {
		return nil, exit
	}
	c := Default()
	fs := newFlagSet(c)
	if exit := p.parseArgs(c, fs); exit != nil {
		return nil, exit
	}
	c, exit, err := p.resolve(c, fs)
	if exit != nil {
		return nil, exit
	}
	if level := (*logging.LevelError)(nil); errors.As(err, &level) {
		// etcd panics here; scripts depend on the text and the exit code.
		fmt.Fprintf(p.stderr, "panic: %v\n", level)
		return nil, &Exit{exitUsage}
	}
	lg := p.early
	if c != nil && c.lg != nil {
		lg = c.lg
	}
	lg.Info("Running: ", zap.Strings("args", p.args))
	if err != nil {
		return nil, p.reject(lg, err)
	}
	p.logNotes(c)
	p.settleDefaults(c)
	if err := (validator{c}).start(); err != nil {
		return nil, c.FatalExit(err)
	}
	c.handDown()
	return c, nil
}

// reject logs why the configuration is rejected.
func (p *parser) reject(lg *zap.Logger, err error) *Exit {
	lg.Warn("failed to verify flags", zap.Error(err))
	if errors.Is(err, ErrAdvertiseClientURLs) {
		lg.Warn("advertise client URLs are not set", zap.Error(err))
	}
	return &Exit{exitError}
}

// parseArgs parses the command line, and handles help, version and mistakes.
func (p *parser) parseArgs(c *Config, fs *flag.FlagSet) *Exit {
	fs.SetOutput(p.stderr)
	fs.Usage = func() { io.WriteString(p.stderr, usage+"\n") }
	var args []string
	if len(p.args) > 0 {
		args = p.args[1:]
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		printFlags(p.stdout)
		return &Exit{exitOK}
	case err != nil:
		return &Exit{exitUsage}
	}
	if fs.NArg() == 0 && c.printVersion {
		PrintVersion(p.stdout)
		return &Exit{exitOK}
	}
	return nil
}

// resolve fills and validates c from the source that has precedence. An error rejects the
// configuration; a non-nil exit means that everything has been printed.
func (p *parser) resolve(c *Config, fs *flag.FlagSet) (*Config, *Exit, error) {
	if fs.NArg() > 0 {
		return c, nil, fmt.Errorf("%q is not a valid flag", fs.Arg(0))
	}
	path := c.configFile
	if path == "" {
		path = p.getenv("ETCD_CONFIG_FILE")
	}
	if path != "" {
		return p.fromFile(path)
	}
	exit, err := p.fromFlags(c, fs)
	return c, exit, err
}

func (p *parser) fromFlags(c *Config, fs *flag.FlagSet) (*Exit, error) {
	if v := p.getenv("ETCD_VERSION"); v != "" {
		p.early.Warn("cannot set special environment variable", zap.String("key", "ETCD_VERSION"), zap.String("value", v))
		p.environ = slices.DeleteFunc(slices.Clone(p.environ), func(kv string) bool { return strings.HasPrefix(kv, "ETCD_VERSION=") })
	}
	exit, err := p.applyEnv(fs)
	if exit != nil || err != nil {
		return exit, err
	}
	if c.Member.Peers.ReadTimeout < minRaftTimeout {
		c.Member.Peers.ReadTimeout = minRaftTimeout
		p.early.Info(fmt.Sprintf("raft-read-timeout increased to minimum value: %v", minRaftTimeout))
	}
	if c.Member.Peers.WriteTimeout < minRaftTimeout {
		c.Member.Peers.WriteTimeout = minRaftTimeout
		p.early.Info(fmt.Sprintf("raft-write-timeout increased to minimum value: %v", minRaftTimeout))
	}
	fs.Visit(func(f *flag.Flag) { c.explicit[f.Name] = true })
	if c.explicit["listen-client-urls"] && !c.explicit["advertise-client-urls"] {
		c.AdvertiseClientURLs = nil
	}
	if !c.explicit["initial-cluster"] && (c.V2Discovery.URL != "" || c.SRV.Domain != "" || c.SRV.Suffix != "" || len(c.Discovery.Client.Endpoints) > 0) {
		c.InitialCluster = ""
	}
	if err := mergeOldNames(c); err != nil {
		return nil, err
	}
	err = p.finish(c)
	p.warnDeprecated(c)
	return nil, err
}

// warnDeprecated warns about deprecated flags that were set.
func (p *parser) warnDeprecated(c *Config) {
	for _, name := range sortedKeys(deprecatedNames) {
		if c.explicit[name] && c.lg != nil {
			c.lg.Warn(deprecatedNames[name])
		}
	}
}

// finish opens the logger and validates.
func (p *parser) finish(c *Config) error {
	if c.Calls.WarnUnaryDuration == 0 {
		c.Calls.WarnUnaryDuration = Default().Calls.WarnUnaryDuration
	}
	if c.Member.SnapshotCount == 0 {
		c.Member.SnapshotCount = defaultSnapshotCount
	}
	if err := c.openLog(p.stdout, p.stderr); err != nil {
		return err
	}
	if c.V2Discovery.Fallback == discovery.FallbackProxy && c.V2Discovery.URL == "" {
		// The default up to etcd 3.5, which old units and guides spell out.
		c.warn("--discovery-fallback=proxy changes nothing without --discovery")
	}
	if err := p.settleJoin(c); err != nil {
		return err
	}
	if err := (validator{c}).validate(); err != nil {
		return err
	}
	p.noteInert(c)
	return nil
}

// mergeOldNames merges flags and file keys that were given under their former, experimental
// names.
func mergeOldNames(c *Config) error {
	for _, a := range aliases {
		if !c.explicit[a.old] {
			continue
		}
		if c.explicit[a.new] {
			return fmt.Errorf("cannot set --%s and --%s at the same time, please use --%s only", a.old, a.new, a.new)
		}
		c.explicit[a.new] = true
		c.warn(fmt.Sprintf("--%s is deprecated in v3.6 and will be decommissioned in v3.7. Use '--%s' instead.", a.old, a.new))
	}
	for _, a := range gateAliases {
		on, given := c.oldGates[a.old]
		if !given {
			continue
		}
		if v, both := c.FeatureGates.set[a.gate]; both {
			return fmt.Errorf("cannot specify both flags: --%[1]s=%[2]t and --feature-gates=%[3]s=%[4]t at the same time, please just use --feature-gates=%[3]s=%[4]t", a.old, on, a.gate, v)
		}
		if err := c.FeatureGates.Set(fmt.Sprintf("%s=%t", a.gate, on)); err != nil {
			return err
		}
		c.warn(fmt.Sprintf("--%s is deprecated in v3.6 and will be decommissioned in v3.7. Use '--feature-gates=%s=true' instead.", a.old, a.gate))
	}
	return nil
}

// noteInert queues a warning for everything that was set and has no effect.
func (p *parser) noteInert(c *Config) {
	for _, name := range c.Inert() {
		c.warn("accepted without effect: this version of Quorate does not act on it", zap.String("flag", "--"+name))
	}
}

// Inert returns the names of the flags that were moved off their defaults and have no
// effect, in the order of --help; gates as feature-gates=Name.
func (c *Config) Inert() []string {
	var names []string
	defaults := Default()
	for _, o := range options {
		if o.state == inert && textOf(o, c) != textOf(o, defaults) {
			names = append(names, o.name)
		}
	}
	for _, gate := range c.FeatureGates.inert() {
		names = append(names, "feature-gates="+gate)
	}
	return names
}

func (p *parser) logNotes(c *Config) {
	for _, n := range c.notes {
		c.lg.Log(n.level, n.msg, n.fields...)
	}
	c.notes = nil
}

// settleDefaults computes the defaults that depend on other settings.
func (p *parser) settleDefaults(c *Config) {
	p.settleAdvertised(c)
	if c.Member.DataDir == "" {
		c.Member.DataDir = c.Member.Name + ".etcd"
		c.lg.Warn("'data-dir' was empty; using default", zap.String("data-dir", c.Member.DataDir))
	}
}

// settleAdvertised replaces localhost in the advertised URLs by the address of this host if
// the listener is on every interface. For a member with a name and no --initial-cluster, it
// computes the initial cluster.
func (p *parser) settleAdvertised(c *Config) {
	unspecified := func(listen, advertise []string, def string) bool {
		return len(advertise) == 1 && advertise[0] == def && len(listen) > 0 && strings.Contains(listen[0], "://0.0.0.0:")
	}
	peer := unspecified(URLStrings(c.ListenPeerURLs), URLStrings(c.AdvertisePeerURLs), defaultPeerURL)
	client := unspecified(URLStrings(c.ListenClientURLs), URLStrings(c.AdvertiseClientURLs), defaultClientURL)
	if peer || client {
		ip, err := p.hostIP()
		switch {
		case err != nil:
			c.lg.Info("failed to detect default host", zap.Error(err))
		default:
			if peer {
				c.AdvertisePeerURLs[0].Host = hostPort(ip, c.ListenPeerURLs[0].Port())
			}
			if client {
				c.AdvertiseClientURLs[0].Host = hostPort(ip, c.ListenClientURLs[0].Port())
			}
			c.lg.Info("detected default host for advertise", zap.String("host", ip))
		}
	}
	if c.Member.Name != DefaultName && c.InitialCluster == DefaultName+"="+defaultPeerURL {
		c.InitialCluster = clusterOfOne(c)
	}
}

// clusterOfOne is an initial cluster of this member alone.
func clusterOfOne(c *Config) string {
	name := c.Member.Name
	if name == "" {
		name = DefaultName
	}
	pairs := make([]string, len(c.AdvertisePeerURLs))
	for i := range c.AdvertisePeerURLs {
		pairs[i] = name + "=" + c.AdvertisePeerURLs[i].String()
	}
	return strings.Join(pairs, ",")
}

func (p *parser) getenv(name string) string {
	for _, kv := range p.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// envName returns the environment variable of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// applyEnv sets the flags that were not given from the environment, and warns about other
// variables with our prefix.
func (p *parser) applyEnv(fs *flag.FlagSet) (*Exit, error) {
	onCommandLine, used := map[string]bool{}, map[string]bool{}
	fs.Visit(func(f *flag.Flag) { onCommandLine[envName(f.Name)] = true })
	var failed error
	fs.VisitAll(func(f *flag.Flag) {
		name := envName(f.Name)
		value := p.getenv(name)
		if onCommandLine[name] || value == "" {
			return
		}
		used[name] = true
		if err := fs.Set(f.Name, value); err != nil {
			failed = fmt.Errorf("invalid value %q for %s: %w", value, name, err)
			return
		}
		p.early.Info("recognized and used environment variable", zap.String("variable-name", name), zap.String("variable-value", value))
	})
	for _, kv := range p.environ {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case used[name]:
		case onCommandLine[name]:
			p.early.WithOptions(zap.WithFatalHook(keepRunning{}), zap.AddStacktrace(zapcore.FatalLevel+1)).Fatal(
				"conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))",
				zap.String("environment-variable", name))
			return &Exit{exitError}, nil
		case strings.HasPrefix(kv, envPrefix):
			p.early.Warn("unrecognized environment variable", zap.String("environment-variable", kv))
		}
	}
	return nil, failed
}

// keepRunning makes a log line of level fatal return, so that the caller of Parse exits.
type keepRunning struct{}

func (keepRunning) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {}

// checkArch refuses untested processor architectures unless ETCD_UNSUPPORTED_ARCH allows
// them.
func (p *parser) checkArch() *Exit {
	if slices.Contains(supportedArchs, p.goarch) {
		return nil
	}
	if p.getenv("ETCD_UNSUPPORTED_ARCH") != p.goarch {
		p.early.Error("Refusing to run etcd on unsupported architecture since ETCD_UNSUPPORTED_ARCH is not set", zap.String("arch", p.goarch))
		return &Exit{exitError}
	}
	p.early.Info("running etcd on unsupported architecture since ETCD_UNSUPPORTED_ARCH is set", zap.String("arch", p.goarch))
	p.environ = slices.DeleteFunc(slices.Clone(p.environ), func(kv string) bool { return strings.HasPrefix(kv, "ETCD_UNSUPPORTED_ARCH=") })
	return nil
}

// FatalExit logs why the member cannot start. The caller exits with code 1.
func (c *Config) FatalExit(err error) *Exit { return c.Fatal("failed to start etcd", err) }

// Fatal is FatalExit with a message of the caller's. It logs no stack trace, which would
// always point here.
func (c *Config) Fatal(msg string, err error) *Exit {
	c.lg.WithOptions(zap.WithFatalHook(keepRunning{}), zap.AddStacktrace(zapcore.FatalLevel+1)).Fatal(msg, zap.Error(err))
	c.lg.Sync()
	return &Exit{exitError}
}
