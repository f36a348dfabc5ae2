package utl

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"quorate/internal/clock"
	"quorate/internal/durable"
	"quorate/internal/utl/plan"
)

func (a planCommands) cluster() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster <subcommand>",
		Short:   "Plans the hosts of a cluster: units, certificates, commands",
		Example: "  etcdutl cluster plan etcd-1=192.168.79.134 etcd-2=192.168.79.136 etcd-3=192.168.79.137",
	}
	cmd.AddCommand(a.planCommand())
	return cmd
}

// planFlags are the flags of cluster plan that are not options of the plan.
type planFlags struct {
	out, format string
	force       bool
}

func (a planCommands) planCommand() *cobra.Command {
	o := plan.Default()
	f := planFlags{format: string(o.Format)}
	cmd := &cobra.Command{
		Use:   "plan NAME=ADDRESS [NAME=ADDRESS ...] [options]",
		Short: "Prints what each host of a cluster needs, and the commands to start it, in order",
		Long: strings.TrimSpace(`
Prints what each host of a cluster needs, and the commands to start it, in order.
A host is the name of its member and the address by which the others reach it.
Nothing is contacted or changed; with --out the files are written to a directory,
from which the printed commands copy them.

With --tls, members and clients prove themselves with certificates. The authority
that signs them is kept in DIR/ca, and used again the next time: keep it safe. With
--join, the hosts become members of a cluster that runs already.`),
		Example: "  etcdutl cluster plan etcd-1=192.168.79.134 etcd-2=192.168.79.136 etcd-3=192.168.79.137 --tls --out my-cluster\n" +
			"  etcdutl cluster plan etcd-4=192.168.79.138 --join https://192.168.79.134:2379 --tls --out my-cluster",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Hosts, err = plan.ParseHosts(args); err != nil {
				return badArgs("%w", err)
			}
			for _, n := range []string{"cert-dir", "valid"} {
				if cmd.Flags().Changed(n) && !o.TLS {
					return badArgs("--%s is about certificates, which only --tls asks for", n)
				}
			}
			o.Format, o.Out, o.Now = plan.Format(f.format), f.out, clock.Now()
			return a.plan(o, f)
		}),
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.TLS, "tls", false, "make certificates, and admit only members and clients that have one")
	fs.StringVar(&f.out, "out", "", "directory to write the files to; without it they are printed")
	fs.BoolVar(&f.force, "force", false, "replace files in --out that differ (never the authority)")
	fs.StringVar(&f.format, "format", f.format, "where members have their settings: unit (flags) or yaml (a file)")
	fs.StringSliceVar(&o.Join, "join", nil, "client URLs of a running cluster that the hosts join; without it they found one")
	fs.StringVar(&o.Token, "token", o.Token, "distinguishes this cluster from others that use the same URLs")
	fs.StringVar(&o.DataDir, "data-dir", o.DataDir, "data directory on the hosts")
	fs.IntVar(&o.ClientPort, "client-port", o.ClientPort, "port for clients")
	fs.IntVar(&o.PeerPort, "peer-port", o.PeerPort, "port for the other members")
	fs.IntVar(&o.HeartbeatMs, "heartbeat-interval", 0, "milliseconds; about the round trip between the hosts (0: etcd's default, 100)")
	fs.IntVar(&o.ElectionMs, "election-timeout", 0, "milliseconds; about ten heartbeats (0: etcd's default, 1000)")
	fs.StringVar(&o.CertDir, "cert-dir", o.CertDir, "directory of the certificates on the hosts")
	fs.IntVar(&o.Years, "valid", o.Years, "years for which new certificates are valid")
	formats := cobra.FixedCompletions([]string{string(plan.Unit), string(plan.YAML)}, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("format", formats); err != nil {
		panic(err) // the flag is registered above
	}
	dirFlags(cmd, "out")
	return cmd
}

// plan creates the plan, writes its files if --out is given, and prints the rest.
func (a planCommands) plan(o plan.Options, f planFlags) error {
	switch {
	case o.TLS && f.out == "":
		return badArgs("--tls makes private keys, which do not belong on a terminal: give --out DIR to have them written to files that only you can read")
	case f.force && f.out == "":
		return badArgs("--force is about files in --out, which was not given")
	}
	if o.TLS {
		var err error
		if o.Authority, err = readAuthority(filepath.Join(f.out, "ca"), o.Now); err != nil {
			return err
		}
		o.KeepClient = !f.force && exists(filepath.Join(f.out, "client", "client.key")) && exists(filepath.Join(f.out, "client", "client.pem"))
	}
	p, err := plan.New(o)
	if errors.Is(err, plan.ErrNoAuthority) {
		return badArgs("--join with --tls: %w, and %s is not there; give the --out directory of the first plan", err, filepath.Join(f.out, "ca", "ca.key"))
	}
	if err != nil {
		return badArgs("%w", err)
	}
	if f.out != "" {
		written, err := writeFiles(f.out, p.Files, f.force)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.Stdout, "Wrote %d files to %s", written, f.out)
		if same := len(p.Files) - written; same > 0 {
			fmt.Fprintf(a.Stdout, "; %d were there already", same)
		}
		fmt.Fprintf(a.Stdout, ".\n\n")
	}
	fmt.Fprint(a.Stdout, p.Text(f.out == ""))
	return nil
}

// readAuthority reads the authority that an earlier plan has left in dir; nil if there
// is none.
func readAuthority(dir string, now time.Time) (*plan.Authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	cert, certErr := os.ReadFile(certFile)
	key, keyErr := os.ReadFile(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return nil, nil
	}
	if err := errors.Join(certErr, keyErr); err != nil {
		return nil, fmt.Errorf("the certificate authority in %s is not complete: %w; put back what is missing, or choose another --out", dir, err)
	}
	ca, err := plan.ParseAuthority(cert, key, now)
	if err != nil {
		return nil, fmt.Errorf("the certificate authority %s with %s cannot be used: %w; choose another --out for a new one", certFile, keyFile, err)
	}
	return ca, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// writeFiles writes the files below dir that do not have their content yet. An existing
// file that differs is replaced only with force; otherwise writeFiles returns an error
// before it writes anything.
func writeFiles(dir string, files []plan.File, force bool) (written int, err error) {
	var todo []plan.File
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		switch old, err := os.ReadFile(path); {
		case err == nil && bytes.Equal(old, f.Content):
			continue
		case err == nil && !force:
			return 0, fmt.Errorf("%s exists and differs from what is planned: --force replaces it, or choose another --out", path)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return 0, err
		}
		todo = append(todo, f)
	}
	for _, f := range todo {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return 0, err
		}
		if err := durable.WriteFileMode(path, f.Content, os.FileMode(f.Mode)); err != nil {
			return 0, err
		}
	}
	return len(todo), nil
}
