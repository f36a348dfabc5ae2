package config

import (
	"fmt"
	"io"
	"strings"
)

// usage is printed with every command line error.
const usage = `Usage:

  etcd [flags]
    Run a member of the cluster.

  etcd --config-file FILE
    Run a member with the settings of a YAML or JSON file. Flags and environment
    variables are ignored then. Durations in the file are whole nanoseconds:
    600000000000 for ten minutes.

  etcd gateway
    Forward TCP connections to the members of a cluster.

  etcd grpc-proxy
    Serve the API in front of a cluster, sharing answers and watches.

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

// Usage is the part of --help above the flags.
func Usage() string { return usage }

// FlagHelp is one flag's part of --help.
type FlagHelp struct {
	Group, Name, Default string
	Text                 []string // lines
}

// Flags returns every flag in the order of --help.
func Flags() []FlagHelp {
	defaults := Default()
	var out []FlagHelp
	for _, group := range groups {
		for _, o := range options {
			if o.group == group {
				out = append(out, helpOf(o, defaults))
			}
		}
	}
	return out
}

// printFlags writes every flag with its default and what it does, by group.
func printFlags(w io.Writer) {
	group := ""
	for _, f := range Flags() {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(w, "\n%s:\n", group)
		}
		fmt.Fprintf(w, "  --%s '%s'\n", f.Name, f.Default)
		for _, line := range f.Text {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
	fmt.Fprintf(w, "\nUnsafe flags can break the guarantees of consensus.\n")
}

func helpOf(o option, defaults *Config) FlagHelp {
	f := FlagHelp{Group: string(o.group), Name: o.name, Default: o.shown, Text: []string{o.help + o.state.note()}}
	if f.Default == "" {
		f.Default = textOf(o, defaults)
	}
	if o.name == "feature-gates" {
		for _, g := range known {
			f.Text = append(f.Text, fmt.Sprintf("%s=true|false (%s - default=%t)", g.Name, strings.ToUpper(g.Stage), g.Default))
		}
	}
	return f
}

// note marks the options that have no effect.
func (s state) note() string {
	switch s {
	case inert:
		return " (No effect in this version.)"
	}
	return ""
}
