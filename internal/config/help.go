package config

import (
	"fmt"
	"io"
	"strings"
)

// usage is printed with every error of the command line.
const usage = `Usage:

  etcd [flags]
    Run a member of the cluster.

  etcd --config-file FILE
    Run a member with the settings of a YAML or JSON file. Flags and environment
    variables are ignored then. Durations in the file are whole nanoseconds:
    600000000000 for ten minutes.

  etcd gateway
    Pass TCP connections on to the members of a cluster.

  etcd grpc-proxy
    Serve the API in front of a cluster, with its answers and watches shared.

  etcd --version
    Print the version.

  etcd -h | --help
    Print this and every flag.

  Every flag can be given as an environment variable instead: --data-dir as
  ETCD_DATA_DIR. Giving both is an error.

  A cluster of three, on the first of its hosts:

    etcd --name m1 --data-dir /var/lib/etcd \
      --listen-peer-urls http://10.0.0.1:2380 --initial-advertise-peer-urls http://10.0.0.1:2380 \
      --listen-client-urls http://10.0.0.1:2379 --advertise-client-urls http://10.0.0.1:2379 \
      --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380,m3=http://10.0.0.3:2380
`

// printFlags writes every flag with its default and what it does, by group.
func printFlags(w io.Writer) {
	defaults := Default()
	for _, group := range groups {
		fmt.Fprintf(w, "\n%s:\n", group)
		for _, o := range options {
			if o.group == group {
				printFlag(w, o, defaults)
			}
		}
	}
	fmt.Fprintf(w, "\nUnsafe flags can break what consensus promises.\n")
}

func printFlag(w io.Writer, o option, defaults *Config) {
	shown := o.shown
	if shown == "" {
		shown = textOf(o, defaults)
	}
	fmt.Fprintf(w, "  --%s '%s'\n", o.name, shown)
	fmt.Fprintf(w, "    %s%s\n", o.help, o.state.note())
	if o.name == "feature-gates" {
		for _, g := range known {
			fmt.Fprintf(w, "    %s=true|false (%s - default=%t)\n", g.Name, strings.ToUpper(g.Stage), g.Default)
		}
	}
}

// note is what --help says about options that do nothing.
func (s state) note() string {
	switch s {
	case inert:
		return " (No effect in this version.)"
	}
	return ""
}
