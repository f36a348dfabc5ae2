package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestJoin(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args, file                  string
		name, peers, clients        string
		advertisePeers, advertiseCl string
		err                         string
	}{
		{args: "--join http://127.0.0.1:2379", name: host,
			peers: "http://127.0.0.1:2380", clients: "http://127.0.0.1:2379", advertisePeers: "http://127.0.0.1:2380", advertiseCl: "http://127.0.0.1:2379"},
		{args: "--name m2 --join http://[::1]:2379", name: "m2",
			peers: "http://[::1]:2380", clients: "http://[::1]:2379", advertisePeers: "http://[::1]:2380", advertiseCl: "http://[::1]:2379"},
		// A name that does not resolve: the address on the default route is used.
		{args: "--name m2 --join http://host.invalid:2379", name: "m2",
			peers: "http://10.1.2.3:2380", clients: "http://10.1.2.3:2379,http://127.0.0.1:2379", advertisePeers: "http://10.1.2.3:2380", advertiseCl: "http://10.1.2.3:2379"},
		{args: "--name m2 --join http://host.invalid:2379 --listen-client-urls http://0.0.0.0:3379 --listen-peer-urls http://[::]:3380", name: "m2",
			peers: "http://[::]:3380", clients: "http://0.0.0.0:3379", advertisePeers: "http://10.1.2.3:3380", advertiseCl: "http://10.1.2.3:3379"},
		{args: "--name m2 --join http://host.invalid:2379 --listen-client-urls http://127.0.0.1:1,http://10.9.9.9:1 --initial-advertise-peer-urls http://peer:1", name: "m2",
			peers: "http://10.1.2.3:2380", clients: "http://10.9.9.9:1,http://127.0.0.1:1", advertisePeers: "http://peer:1", advertiseCl: "http://10.9.9.9:1"},
		{file: "{name: m2, join: 'http://host.invalid:2379', listen-peer-urls: 'http://10.1.2.3:7'}", name: "m2",
			peers: "http://10.1.2.3:7", clients: "http://10.1.2.3:2379,http://127.0.0.1:2379", advertisePeers: "http://10.1.2.3:7", advertiseCl: "http://10.1.2.3:2379"},

		{args: "--join http://127.0.0.1:2379 --initial-cluster a=http://b:1", err: "--join and --initial-cluster cannot be set at the same time"},
		{args: "--join http://127.0.0.1:2379 --discovery-srv x", err: "--join cannot be combined with discovery flags"},
		{args: "--join unix:///tmp/x", err: "give the client URL of a member"},
	} {
		r := parse(t, strings.Fields(tc.args), nil, tc.file)
		if tc.err != "" {
			l := r.logged("failed to verify flags")
			if r.code != 1 || len(l) != 1 || !strings.Contains(l[0]["error"].(string), tc.err) {
				t.Errorf("%s: code %d, %v, want %q", tc.args, r.code, l, tc.err)
			}
			continue
		}
		if r.code != -1 {
			t.Errorf("%s%s: code %d: %s", tc.args, tc.file, r.code, r.stderr)
			continue
		}
		c := r.c
		got := [...]string{c.Member.Name, strings.Join(URLStrings(c.ListenPeerURLs), ","), strings.Join(URLStrings(c.ListenClientURLs), ","),
			strings.Join(URLStrings(c.AdvertisePeerURLs), ","), strings.Join(URLStrings(c.AdvertiseClientURLs), ",")}
		if want := [...]string{tc.name, tc.peers, tc.clients, tc.advertisePeers, tc.advertiseCl}; got != want {
			t.Errorf("%s%s:\n got %q\nwant %q", tc.args, tc.file, got, want)
		}
		if c.IsNewCluster() || c.InitialCluster != "" {
			t.Errorf("%s%s: state %q, initial cluster %q", tc.args, tc.file, c.ClusterState, c.InitialCluster)
		}
	}
}

// Without any route there is no address, and the error names the flags to set.
func TestJoinWithoutRoute(t *testing.T) {
	var stderr strings.Builder
	none := func() (string, error) { return "", errors.New("network is unreachable") }
	p := &parser{args: []string{"etcd", "--join", "http://10.0.0.1:2379"}, stdout: &stderr, stderr: &stderr, goarch: "amd64",
		hostIP: none, hostToward: func(string) (string, error) { return none() }}
	if _, exit := p.run(); exit == nil || exit.Code != 1 || !strings.Contains(stderr.String(), "give --listen-peer-urls and --listen-client-urls") {
		t.Errorf("exit %v: %s", exit, stderr.String())
	}
}
