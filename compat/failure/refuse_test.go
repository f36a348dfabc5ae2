package failure

import (
	"net"
	"os"
	"strings"
	"testing"

	"quorate/compat/child"
)

// refusal is a start that must fail.
type refusal struct {
	name    string
	prepare func(t *testing.T, s *site) // prepares the existing state; nil: none
	args    func(s *site) []string      // flags after those of a correct member
	code    int                         // exit code
	want    func(s *site) []string      // what the single line must contain
	real    int                         // exit code of etcd 3.7.3; unasked if it does not exit by itself
	say     string                      // what etcd's line contains as well; empty: not compared
}

// unasked means that etcd's exit code is not compared.
const unasked = -1

func flags(f ...string) func(*site) []string { return func(*site) []string { return f } }
func words(w ...string) func(*site) []string { return func(*site) []string { return w } }

func TestRefusals(t *testing.T) {
	var cases []refusal
	// Each flag that takes listen URLs, with each malformed form.
	for _, name := range []string{"listen-peer-urls", "listen-client-urls", "listen-client-http-urls", "listen-metrics-urls"} {
		cases = append(cases,
			refusal{name: name + " without scheme", args: flags("--" + name + "=127.0.0.1:2379"), code: 2,
				want: words(`invalid value "127.0.0.1:2379" for flag -` + name), real: 2},
			refusal{name: name + " with an unknown scheme", args: flags("--" + name + "=ftp://127.0.0.1:2379"), code: 2,
				want: words(`for flag -`+name, "URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:2379"), real: 2},
			refusal{name: name + " without port", args: flags("--" + name + "=http://127.0.0.1"), code: 2,
				want: words(`for flag -`+name, `URL address does not have the form "host:port": http://127.0.0.1`), real: 2},
			refusal{name: name + " with a path", args: flags("--" + name + "=http://127.0.0.1:2379/x"), code: 2,
				want: words(`for flag -`+name, "URL must not contain a path: http://127.0.0.1:2379/x"), real: 2},
			refusal{name: name + " on a host name", args: flags("--" + name + "=http://example.com:2379"), code: 1,
				want: words("expected IP in URL for binding (http://example.com:2379)"), real: 1},
		)
	}
	for _, name := range []string{"initial-advertise-peer-urls", "advertise-client-urls"} {
		cases = append(cases,
			refusal{name: name + " without scheme", args: flags("--" + name + "=127.0.0.1:2379"), code: 2,
				want: words(`invalid value "127.0.0.1:2379" for flag -` + name), real: 2},
			refusal{name: name + " with an empty host", args: flags("--" + name + "=http://:2379"), code: 1,
				want: words("--"+name, "unexpected empty host (http://:2379)"), real: 1},
			refusal{name: name + " with a path", args: flags("--" + name + "=http://127.0.0.1:2379/x"), code: 2,
				want: words(`for flag -`+name, "URL must not contain a path: http://127.0.0.1:2379/x"), real: 2},
		)
	}
	cases = append(cases,
		// The command line.
		refusal{name: "unknown flag", args: flags("--no-such-flag"), code: 2, want: words("flag provided but not defined: -no-such-flag"), real: 2},
		refusal{name: "bad number", args: flags("--election-timeout=soon"), code: 2, want: words(`invalid value "soon" for flag -election-timeout`), real: 2},
		refusal{name: "stray argument", args: flags("stray"), code: 1, want: words(`\"stray\" is not a valid flag`), real: 1},
		refusal{name: "election timeout below five heartbeats", args: flags("--heartbeat-interval=100", "--election-timeout=400"), code: 1,
			want: words("--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]"), real: 1},

		// The member's identity.
		refusal{name: "name not in initial-cluster", args: flags("--name=other"), code: 1,
			want: words(`couldn't find local name \"other\" in the initial cluster configuration`), real: 1},
		refusal{name: "initial-cluster with another URL for this member", code: 1,
			args: func(s *site) []string { return []string{"--initial-cluster=m0=http://" + s.more[0]} },
			want: func(s *site) []string {
				return []string{"--initial-cluster has m0=http://" + s.more[0] + " but missing from --initial-advertise-peer-urls=http://" + s.peer}
			}, real: 1},
		refusal{name: "two advertised URLs, one listed", code: 1,
			args: func(s *site) []string {
				return []string{"--initial-advertise-peer-urls=http://" + s.peer + ",http://" + s.more[0]}
			},
			want: func(s *site) []string {
				return []string{"--initial-advertise-peer-urls has http://" + s.more[0] + " but missing from --initial-cluster=m0=http://"}
			}, real: 1},
		refusal{name: "two members with one URL", code: 1,
			args: func(s *site) []string {
				return []string{"--initial-cluster=m0=http://" + s.peer + ",m1=http://" + s.peer}
			},
			want: func(s *site) []string { return []string{"initial cluster", "m1=http://" + s.peer, "has duplicate url"} }, real: 1},
		refusal{name: "initial-cluster without URL", args: flags("--initial-cluster=m0"), code: 1, want: words("error setting up initial cluster"), real: 1},
		refusal{name: "unknown cluster state", args: flags("--initial-cluster-state=old"), code: 2,
			want: words(`invalid value "old" for flag -initial-cluster-state`), real: 2},

		// Sockets.
		refusal{name: "client port in use", prepare: occupy(0), code: 1,
			args: func(s *site) []string { return nil },
			want: func(s *site) []string {
				return []string{"--listen-client-urls=http://" + s.client, "address already in use", "choose another port"}
			}, real: 1, say: "address already in use"},
		refusal{name: "peer port in use", prepare: occupy(1), code: 1,
			args: func(s *site) []string { return nil },
			want: func(s *site) []string {
				return []string{"--listen-peer-urls=http://" + s.peer, "address already in use"}
			}, real: 1, say: "address already in use"},
		refusal{name: "address of another machine", args: flags("--listen-client-urls=http://192.0.2.7:1", "--advertise-client-urls=http://192.0.2.7:1"), code: 1,
			want: words("--listen-client-urls=http://192.0.2.7:1", "cannot assign requested address", "no interface of this machine has the address"), real: 1, say: "cannot assign requested address"},
		refusal{name: "one port twice", code: 1,
			args: func(s *site) []string { return []string{"--listen-client-urls=http://" + s.peer} },
			want: func(s *site) []string {
				return []string{"--listen-client-urls=http://" + s.peer, "address already in use"}
			}, real: 1},

		// Directories.
		refusal{name: "data-dir is a file", code: 1, args: func(s *site) []string { return nil },
			prepare: func(t *testing.T, s *site) { write(t, s.data, "text") },
			want:    func(s *site) []string { return []string{s.data, "not a directory"} }, real: 1},
		refusal{name: "data-dir below a file", code: 1,
			prepare: func(t *testing.T, s *site) { write(t, s.data, "text") },
			args:    func(s *site) []string { return []string{"--data-dir=" + s.data + "/below"} },
			want:    func(s *site) []string { return []string{s.data + "/below", "not a directory"} }, real: 1},
		refusal{name: "data-dir on a file system that cannot be written", code: 1,
			args: flags("--data-dir=/proc/none"),
			want: words("/proc/none"), real: 1},
		refusal{name: "wal-dir on a file system that cannot be written", code: 1,
			args: flags("--wal-dir=/proc/none"),
			want: words("/proc/none"), real: 2}, // it panics
		refusal{name: "config file that is not there", args: flags("--config-file=/nonexistent.yml"), code: 1,
			want: words("/nonexistent.yml", "no such file or directory"), real: 1},

		// Joining.
		refusal{name: "existing cluster of which no member answers", code: 1,
			args: func(s *site) []string {
				return []string{"--initial-cluster-state=existing", "--initial-cluster=m0=http://" + s.peer + ",m1=http://" + s.more[0]}
			},
			want: words("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"), real: 1,
			say: "could not retrieve cluster information from the given URLs"},
		refusal{name: "existing cluster without another member", args: flags("--initial-cluster-state=existing"), code: 1,
			want: words("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs (--initial-cluster names no other member to ask", "give --initial-cluster-state=new"), real: 1,
			say: "could not retrieve cluster information from the given URLs"},
		refusal{name: "forced new cluster without data", args: flags("--initial-cluster-state=existing", "--force-new-cluster"), code: 1,
			want: words("could not retrieve cluster information from the given URLs (--initial-cluster names no other member to ask", "if this member has run before, give the --data-dir that it had"), real: 1,
			say: "could not retrieve cluster information from the given URLs"},
		refusal{name: "existing cluster without this member", code: 1,
			args: func(s *site) []string {
				return []string{"--initial-cluster-state=existing", "--name=other", "--initial-cluster=m0=http://" + s.peer}
			},
			want: words(`couldn't find local name \"other\" in the initial cluster configuration`), real: 1,
			say: `couldn't find local name \"other\" in the initial cluster configuration`},
		refusal{name: "existing cluster with two members on one URL", code: 1,
			args: func(s *site) []string {
				return []string{"--initial-cluster-state=existing", "--initial-cluster=m0=http://" + s.peer + ",m1=http://" + s.peer}
			},
			want: words("initial cluster m0=http://", "has duplicate url"), real: 1, say: "has duplicate url"},
		refusal{name: "no initial cluster", args: flags("--initial-cluster="), code: 1,
			want: words(`couldn't find local name \"m0\" in the initial cluster configuration`), real: 1,
			say: `couldn't find local name \"m0\" in the initial cluster configuration`},
	)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { t.Parallel(); c.run(t) })
	}
}

// run starts the server with the mistake and checks its exit code, output and directory.
func (c refusal) run(t *testing.T) {
	s := newSite(t)
	if c.prepare != nil {
		c.prepare(t, s)
	}
	c.at(t, s)
}

func (c refusal) at(t *testing.T, s *site) {
	t.Helper()
	before := child.Look(t, s.data)
	p := s.start(t, etcd, c.args(s)...)
	code := p.Wait(t, limit)
	if code != c.code {
		t.Errorf("exit code %d, want %d", code, c.code)
	}
	reasons := child.Reasons(p.Output())
	if len(reasons) != 1 {
		t.Errorf("%d lines give a reason, want 1", len(reasons))
	}
	said := strings.Join(reasons, "\n")
	for _, w := range c.want(s) {
		if !strings.Contains(said, w) {
			t.Errorf("the reason does not hold %s", w)
		}
	}
	if diff := before.Changed(child.Look(t, s.data)); diff != "" {
		t.Errorf("the data directory has changed:\n%s", diff)
	}
	if t.Failed() {
		t.Logf("reasons given:\n%s", said)
	} else {
		t.Logf("%s", said)
	}
	if real != "" && c.real != unasked {
		c.compare(t)
	}
}

// compare starts real etcd with the same mistake.
func (c refusal) compare(t *testing.T) {
	t.Helper()
	s := newSite(t)
	if c.prepare != nil {
		c.prepare(t, s)
	}
	p := s.start(t, real, c.args(s)...)
	code := p.Wait(t, limit)
	said := strings.Join(child.Reasons(p.Output()), "\n")
	if code != c.real || c.say != "" && !strings.Contains(said, c.say) {
		t.Errorf("etcd 3.7.3: exit code %d, want %d, with %q in:\n%s", code, c.real, c.say, said)
	} else {
		t.Logf("etcd 3.7.3: %s", said)
	}
}

// occupy binds one of the member's ports.
func occupy(which int) func(*testing.T, *site) {
	return func(t *testing.T, s *site) {
		l, err := net.Listen("tcp", []string{s.client, s.peer}[which])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
