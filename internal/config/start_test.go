package config

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestVerifyBootstrap(t *testing.T) {
	tests := []struct {
		name, advertise, cluster string
		want                     string // error
	}{
		{"m1", "http://10.0.0.1:1", "m1=http://10.0.0.1:1,m2=http://10.0.0.2:1", ""},
		{"m1", "http://10.0.0.1:1,http://10.0.0.3:1", "m1=http://10.0.0.3:1,m1=http://10.0.0.1:1", ""},
		{"m1", "http://[fd00:20::2]:1", "m1=http://[fd00:20::0002]:1", ""},
		{"m1", "http://[fd00:20::2]:1,http://[fd00:20::3]:1", "m1=http://[FD00:20::3]:1,m1=http://[fd00:20:0:0:0:0:0:2]:1", ""},
		{"m1", "http://[fd00:20::2]:1,http://[fd00:20::3]:1", "m1=http://[fd00:20::02]:1",
			`--initial-advertise-peer-urls has http://[fd00:20::3]:1 but missing from --initial-cluster=m1=http://[fd00:20::2]:1,m1=http://[fd00:20::3]:1`},
		{"m1", "http://[fd00:20::2]:1", "m1=http://[fd00:20::2]:1,m2=http://[fd00:20::02]:1", "initial cluster m1=http://[fd00:20::2]:1,m2=http://[fd00:20::02]:1 has duplicate url"},
		{"m1", "http://10.0.0.1:1", "m2=http://10.0.0.1:1", `couldn't find local name "m1" in the initial cluster configuration`},
		{"m1", "http://10.0.0.1:1", "m1=http://10.0.0.1:1,m2=http://10.0.0.1:1", "initial cluster m1=http://10.0.0.1:1,m2=http://10.0.0.1:1 has duplicate url"},
		{"m1", "http://10.0.0.1:1", "m1=http://10.0.0.2:1",
			`--initial-cluster has m1=http://10.0.0.2:1 but missing from --initial-advertise-peer-urls=http://10.0.0.1:1 (resolved urls: "http://10.0.0.1:1" != "http://10.0.0.2:1")`},
		{"m1", "http://10.0.0.1:1,http://10.0.0.2:1", "m1=http://10.0.0.2:1",
			`--initial-advertise-peer-urls has http://10.0.0.1:1 but missing from --initial-cluster=m1=http://10.0.0.1:1,m1=http://10.0.0.2:1`},
		{"m1", "http://10.0.0.1:1", "m1=http://10.0.0.1:1,m1=http://10.0.0.2:1",
			`--initial-cluster has m1=http://10.0.0.2:1 but missing from --initial-advertise-peer-urls=http://10.0.0.1:1 (len(["http://10.0.0.1:1"]) != len(["http://10.0.0.1:1" "http://10.0.0.2:1"]))`},
		{"m1", "http://10.0.0.1:1", "m1=foo", "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: foo"},
		{"m1", "http://10.0.0.1:1", "m1", "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: "},
	}
	for _, tt := range tests {
		t.Run(tt.cluster, func(t *testing.T) {
			r := parse(t, []string{"--name", tt.name, "--initial-advertise-peer-urls", tt.advertise, "--initial-cluster", tt.cluster}, nil, "")
			if r.code != -1 {
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			}
			_, err := r.c.InitialMembers(context.Background())
			if got := errText(err); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	r := parse(t, []string{"--name", "m2", "--initial-cluster", "m1=http://h1:1,m2=http://h2:1", "--initial-cluster-state", "existing"}, nil, "")
	if _, err := r.c.InitialMembers(context.Background()); err != nil {
		t.Errorf("joining does not compare with the advertised URLs: %v", err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCheckDataDir(t *testing.T) {
	for _, tt := range []struct {
		proxy string // value of --proxy
		there string // existing entries of the directory; nothing: none
		want  string
	}{
		{"off", "", "false <nil>"},
		{"on", "", "true <nil>"},
		{"off", "lost+found", "false <nil>"},
		{"readonly", "lost+found", "true <nil>"},
		{"off", "member", "false <nil>"},
		{"on", "member", "false <nil>"},
		{"off", "proxy", "true <nil>"},
		{"off", "member proxy", "false invalid datadir; both member and proxy directories exist"},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		for _, name := range strings.Fields(tt.there) {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		r := parse(t, []string{"--data-dir", dir, "--proxy", tt.proxy}, nil, "")
		proxy, err := r.c.CheckDataDir()
		if got := fmt.Sprint(proxy, " ", err); got != tt.want {
			t.Errorf("--proxy=%s with %s: %s, want %s", tt.proxy, tt.there, got, tt.want)
		}
	}
}

// The defaults in old guides are accepted: each alone and all together, as flags and as
// environment variables.
func TestClassicDefaults(t *testing.T) {
	t.Chdir(t.TempDir())
	var environ []string
	for _, arg := range classic(t) {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		environ = append(environ, envName(name)+"="+value)
		args, env := []string{arg}, environ[len(environ)-1:]
		if name == "listen-client-urls" { // every etcd requires the other one as well
			args, env = append(args, "--advertise-client-urls="+value), append(slices.Clone(env), "ETCD_ADVERTISE_CLIENT_URLS="+value)
		}
		for _, r := range []result{parse(t, args, nil, ""), parse(t, nil, env, "")} {
			if r.code != -1 {
				t.Errorf("%s: exit %d: %s", arg, r.code, r.stderr)
			}
		}
	}
	for _, r := range []result{parse(t, classic(t), nil, ""), parse(t, nil, environ, "")} {
		if r.code != -1 {
			t.Fatalf("all together: exit %d: %s", r.code, r.stderr)
		}
		if len(r.c.Inert()) > 0 {
			t.Errorf("without effect: %q", r.c.Inert())
		}
	}
}

// classic is --flag=value of every flag of the guides.
func classic(t *testing.T) []string {
	t.Helper()
	var args []string
	for l := range strings.Lines(classicText) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			args = append(args, l)
		}
	}
	return args
}
