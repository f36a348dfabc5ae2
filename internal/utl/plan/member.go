package plan

import (
	"fmt"
	"strconv"
	"strings"
)

// Paths of a member's files on its host.
const (
	program    = "/usr/bin/etcd"
	unitPath   = "/etc/systemd/system/etcd.service"
	configPath = "/etc/etcd/etcd.conf.yml"
)

// Names of certificates and keys, in CertDir of a host and in Out.
const (
	caCert     = "ca.pem"
	caKey      = "ca.key"
	memberCert = "member.pem"
	memberKey  = "member.key"
	clientCert = "client.pem"
	clientKey  = "client.key"
)

// setting is one flag, and its equivalent in a configuration file.
type setting struct {
	flag    string
	section string // of the file; empty: the top level
	key     string // in the file
	value   string
	kind    kind
}

type kind int

const (
	text kind = iota
	number
	list // with one element
	on   // true; a flag without a value
)

// settings returns all settings of the member on h, in the order of the unit.
func (o Options) settings(h Host) []setting {
	var out []setting
	top := func(name, value string, k kind) { out = append(out, setting{name, "", name, value, k}) }
	top("name", h.Name, text)
	top("data-dir", o.DataDir, text)
	top("listen-peer-urls", o.listen(h, o.PeerPort, false), text)
	top("initial-advertise-peer-urls", o.url(h.Address, o.PeerPort), text)
	top("listen-client-urls", o.listen(h, o.ClientPort, true), text)
	top("advertise-client-urls", o.url(h.Address, o.ClientPort), text)
	if len(o.Join) > 0 {
		top("join", strings.Join(o.Join, ","), text)
	} else {
		top("initial-cluster-token", o.Token, text)
		top("initial-cluster", o.initialCluster(), text)
		top("initial-cluster-state", "new", text)
	}
	if o.HeartbeatMs > 0 {
		top("heartbeat-interval", strconv.Itoa(o.HeartbeatMs), number)
	}
	if o.ElectionMs > 0 {
		top("election-timeout", strconv.Itoa(o.ElectionMs), number)
	}
	if o.TLS {
		out = append(out, o.tlsSettings()...)
	}
	return out
}

// tlsSettings returns the settings of both ports. One authority signs for members and
// clients, so members are identified by their common name: a client's certificate is
// not accepted on the peer port.
func (o Options) tlsSettings() []setting {
	var out []setting
	for _, p := range []struct{ prefix, section string }{{"", "client-transport-security"}, {"peer-", "peer-transport-security"}} {
		out = append(out,
			setting{p.prefix + "cert-file", p.section, "cert-file", o.CertDir + "/" + memberCert, text},
			setting{p.prefix + "key-file", p.section, "key-file", o.CertDir + "/" + memberKey, text},
			setting{p.prefix + "client-cert-auth", p.section, "client-cert-auth", "true", on},
			setting{p.prefix + "trusted-ca-file", p.section, "trusted-ca-file", o.CertDir + "/" + caCert, text})
	}
	return append(out, setting{"peer-cert-allowed-cn", "peer-transport-security", "allowed-cn", memberCN, list})
}

func (o Options) initialCluster() string {
	pairs := make([]string, len(o.Hosts))
	for i, h := range o.Hosts {
		pairs[i] = h.Name + "=" + o.url(h.Address, o.PeerPort)
	}
	return strings.Join(pairs, ",")
}

// dir is the directory of a host's files below Out.
func dir(h Host) string { return "hosts/" + h.Name }

func (o Options) memberFiles(h Host) []File {
	settings := o.settings(h)
	unit := File{Path: dir(h) + "/etcd.service", Host: h.Name, Dest: unitPath, Mode: 0o644}
	if o.Format == YAML {
		unit.Content = writeUnit(h, []string{program, "--config-file " + configPath})
		return []File{unit, {Path: dir(h) + "/etcd.conf.yml", Host: h.Name, Dest: configPath, Mode: 0o644, Content: writeYAML(h, settings)}}
	}
	command := []string{program}
	for _, s := range settings {
		if s.kind == on {
			command = append(command, "--"+s.flag)
		} else {
			command = append(command, "--"+s.flag+" "+s.value)
		}
	}
	unit.Content = writeUnit(h, command)
	return []File{unit}
}

// writeUnit returns the unit of a command, one word or flag per line. A member reports
// readiness when it can serve, which may be long after its start: while the others are
// down it waits for them, and systemd must not stop it meanwhile.
func writeUnit(h Host, command []string) []byte {
	return []byte(fmt.Sprintf(`[Unit]
Description=etcd, member %s
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
User=etcd
Group=etcd
ExecStart=%s
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=5s
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
`, h.Name, strings.Join(command, " \\\n  ")))
}

func writeYAML(h Host, settings []setting) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# etcd, member %s. Used with --config-file; all flags and ETCD_* variables are ignored then.\n", h.Name)
	section := ""
	for _, s := range settings {
		indent := ""
		if s.section != section {
			section = s.section
			fmt.Fprintf(&b, "%s:\n", section)
		}
		if section != "" {
			indent = "  "
		}
		value := s.value
		switch s.kind {
		case text:
			value = "'" + value + "'"
		case list:
			value = "['" + value + "']"
		}
		fmt.Fprintf(&b, "%s%s: %s\n", indent, s.key, value)
	}
	return []byte(b.String())
}
