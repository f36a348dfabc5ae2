package plan

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

func (o Options) steps() []Step {
	steps := []Step{o.install(), o.prepare(), o.copy(), o.start(), o.checkUp()}
	if len(o.Join) > 0 {
		steps[3] = o.startJoining()
	}
	if isLoopback(o.Hosts[0].Address) {
		return steps // no other host can reach it, so none can join
	}
	return append(steps, o.more())
}

// ssh returns a command line that runs a script on a host as root. The script must not
// contain a single quote.
func ssh(h Host, script string) string { return "ssh root@" + h.Address + " '" + script + "'" }

// scp returns a command that copies files, below Out, into a directory on a host.
func (o Options) scp(h Host, to string, files ...string) string {
	host := h.Address
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
		host = "[" + host + "]"
	}
	words := make([]string, len(files))
	for i, f := range files {
		words[i] = o.local(f)
	}
	return "scp -p " + strings.Join(words, " ") + " " + quote("root@"+host+":"+to)
}

// local returns a path below Out as a shell word.
func (o Options) local(path string) string { return quote(strings.TrimSuffix(o.Out, "/") + "/" + path) }

var plain = regexp.MustCompile(`^[A-Za-z0-9_./@%+=:,-]+$`)

// quote turns any text into a shell word.
func quote(text string) string {
	if plain.MatchString(text) && !strings.HasPrefix(text, "-") {
		return text
	}
	if strings.HasPrefix(text, "-") {
		text = "./" + text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// each returns one command per host.
func (o Options) each(f func(Host) string) []string {
	out := make([]string, len(o.Hosts))
	for i, h := range o.Hosts {
		out[i] = f(h)
	}
	return out
}

func (o Options) install() Step {
	return Step{Title: "Put the programs on each host",
		Text: "From the directory that they are in; hosts that have them need nothing.",
		Commands: o.each(func(h Host) string {
			o := o
			o.Out = "."
			return strings.ReplaceAll(o.scp(h, "/usr/bin/", "etcd", "etcdctl"), "./", "")
		})}
}

func (o Options) prepare() Step {
	dirs := "install -d -o etcd -g etcd -m 0700 " + o.DataDir
	text := fmt.Sprintf("The data directory must be empty or not there yet, and ports %d (clients) and %d (members) open between the hosts.", o.ClientPort, o.PeerPort)
	if o.TLS {
		dirs += " " + o.CertDir
	}
	if o.Format == YAML {
		dirs += " && install -d " + configPath[:strings.LastIndex(configPath, "/")]
	}
	user := "id -u etcd >/dev/null 2>&1 || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin etcd"
	return Step{Title: "Make the user etcd and the directories on each host", Text: text,
		Commands: o.each(func(h Host) string { return ssh(h, "("+user+") && "+dirs) })}
}

func (o Options) copy() Step {
	if o.Out == "" {
		return Step{Title: "Save the files above on their hosts, under the paths above them",
			Text: "With --out DIR they are written to files here, and this step has the commands to copy them."}
	}
	s := Step{Title: "Copy the files to their hosts"}
	if o.TLS {
		s.Text = "Only what a host needs: keep " + o.local("ca") + " here and safe, who has its key can make certificates for this cluster."
	}
	for _, h := range o.Hosts {
		s.Commands = append(s.Commands, o.scp(h, unitPath, dir(h)+"/etcd.service"))
		if o.Format == YAML {
			s.Commands = append(s.Commands, o.scp(h, configPath, dir(h)+"/etcd.conf.yml"))
		}
		if o.TLS {
			pki := dir(h) + "/pki/"
			s.Commands = append(s.Commands, o.scp(h, o.CertDir+"/", pki+caCert, pki+memberCert, pki+memberKey),
				ssh(h, "chown -R etcd:etcd "+o.CertDir))
		}
	}
	return s
}

// enable does not wait until the member is ready: the first one becomes ready only when
// the second has been started.
const enable = "systemctl daemon-reload && systemctl enable --now --no-block etcd"

func (o Options) start() Step {
	s := Step{Title: "Start etcd on each host", Commands: o.each(func(h Host) string { return ssh(h, enable) })}
	if need := len(o.Hosts)/2 + 1; need > 1 {
		s.Text = fmt.Sprintf("All of them: the first waits, as \"activating\", until %d of %d run. That is why --no-block is there.", need, len(o.Hosts))
	}
	return s
}

func (o Options) startJoining() Step {
	s := Step{Title: "Start etcd on the host", Commands: o.each(func(h Host) string { return ssh(h, enable) }),
		Text: "It adds itself to the cluster as a learner, catches up, and votes from then on."}
	if len(o.Hosts) > 1 {
		s.Title = "Start etcd on the hosts"
		s.Text = "They add themselves to the cluster one after the other: as a learner, which catches up, and votes from then on."
	}
	return s
}

// etcdctl returns the beginning of a command line for the cluster from here.
func (o Options) etcdctl() string {
	c := "etcdctl --endpoints " + quote(o.clientURLs())
	if o.TLS {
		c += " --cacert " + o.local("ca/"+caCert) + " --cert " + o.local("client/"+clientCert) + " --key " + o.local("client/"+clientKey)
	}
	return c
}

func (o Options) checkUp() Step {
	s := Step{Title: "Check", Commands: []string{o.etcdctl() + " endpoint status --cluster -w table"},
		Text: fmt.Sprintf("One line for each of the %d members, one of them the leader. If a host is missing, see there: journalctl -u etcd", len(o.Hosts))}
	if len(o.Hosts) == 1 {
		s.Text = "One line, that of the leader. If there is none, see on the host: journalctl -u etcd"
	}
	if len(o.Join) > 0 {
		s.Text = "One line for each member of the cluster, the new ones with IS LEARNER false in the end. If one is missing, see on its host: journalctl -u etcd"
	}
	return s
}

// more returns the step that adds a host later.
func (o Options) more() Step {
	plan := "etcdutl cluster plan NAME=ADDRESS --join " + quote(o.known()) + o.again()
	s := Step{Title: "Later, to add a host, plan it with --join", Commands: []string{plan},
		Text: "Its member adds itself to the cluster; nothing changes on the other hosts."}
	if o.TLS {
		s.Text += " The authority in " + o.local("ca") + " signs its certificate."
	} else {
		s.Text += " The second line is the same started by hand, on the host."
		s.Commands = append(s.Commands, "etcd --name NAME --data-dir "+o.DataDir+" --join "+quote(o.known()))
	}
	return s
}

// again returns the flags that another host of the same cluster needs, if they differ
// from the defaults.
func (o Options) again() string {
	d := Default()
	var b strings.Builder
	add := func(differs bool, words ...string) {
		if differs {
			b.WriteString(" " + strings.Join(words, " "))
		}
	}
	add(o.TLS, "--tls")
	add(o.Out != "", "--out", quote(o.Out))
	add(o.Format != d.Format, "--format", string(o.Format))
	add(o.DataDir != d.DataDir, "--data-dir", o.DataDir)
	add(o.TLS && o.CertDir != d.CertDir, "--cert-dir", o.CertDir)
	add(o.ClientPort != d.ClientPort, "--client-port", strconv.Itoa(o.ClientPort))
	add(o.PeerPort != d.PeerPort, "--peer-port", strconv.Itoa(o.PeerPort))
	add(o.HeartbeatMs != 0, "--heartbeat-interval", strconv.Itoa(o.HeartbeatMs))
	add(o.ElectionMs != 0, "--election-timeout", strconv.Itoa(o.ElectionMs))
	add(o.TLS && o.Years != d.Years, "--valid", strconv.Itoa(o.Years))
	return b.String()
}

// Text prints the plan. Without a directory for the files it begins with their
// content; private keys are left out of that.
func (p *Plan) Text(printFiles bool) string {
	var b strings.Builder
	if printFiles {
		for _, f := range p.Files {
			if !f.Secret() {
				fmt.Fprintf(&b, "# --- %s: %s\n%s\n", f.Host, f.Dest, f.Content)
			}
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "Note: %s\n\n", n)
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s.Title)
		if s.Text != "" {
			fmt.Fprintf(&b, "   %s\n", s.Text)
		}
		for _, c := range s.Commands {
			fmt.Fprintf(&b, "     %s\n", c)
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
