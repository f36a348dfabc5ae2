package membership

import (
	"errors"
	"slices"
	"testing"

	"quorate/internal/ids"
)

func TestCanonicalURL(t *testing.T) {
	for want, spellings := range map[string][]string{
		"http://[fd00:20::2]:2380":  {"http://[fd00:20::0002]:2380", "http://[FD00:20::2]:2380", "http://[fd00:20:0:0:0:0:0:2]:2380", "HTTP://[fd00:20::2]:02380"},
		"http://10.0.0.1:2380":      {"http://10.0.0.1:2380", "http://[::ffff:10.0.0.1]:2380"},
		"https://etcd-1.example:1":  {"https://ETCD-1.Example:1", "https://etcd-1.example:01"},
		"http://[fe80::1%25eth0]:1": {"http://[FE80::0001%25eth0]:1"},
		"unix://A:1":                {"unix://A:1"},
		"http://%zz":                {"http://%zz"},
		"http://10.0.0.1:99999":     {"http://10.0.0.1:99999"},
		"http://[fd00:20::2]":       {"http://[fd00:20::02]"},
		"http://010.0.0.1:1":        {"http://010.0.0.1:1"}, // not an address
		"unix:/run/etcd.sock":       {"unix:/run/etcd.sock"},
	} {
		for _, u := range spellings {
			if got := CanonicalURL(u); got != want {
				t.Errorf("%s is %s, want %s", u, got, want)
			}
		}
	}
}

func TestCheckURLs(t *testing.T) {
	ms := []Member{{ID: 1, PeerURLs: []string{"http://[fd00::1]:1"}}, {ID: 2, PeerURLs: []string{"http://b:1"}}}
	for _, tt := range []struct {
		id   ids.Member
		url  string
		want error
	}{
		{3, "http://[fd00::0001]:1", ErrPeerURLExists}, {2, "http://[FD00::1]:1", ErrPeerURLExists},
		{1, "http://[fd00::0001]:1", nil}, {3, "http://[fd00::2]:1", nil},
	} {
		if err := CheckURLs(ms, tt.id, []string{tt.url}); !errors.Is(err, tt.want) {
			t.Errorf("member %d at %s: %v", tt.id, tt.url, err)
		}
	}
	two := []InitialMember{{Name: "a", PeerURLs: []string{"http://[fd00::1]:1"}}, {Name: "b", PeerURLs: []string{"http://[fd00::01]:1"}}}
	if err := CheckInitial(two, "a"); err == nil {
		t.Error("one address for two members")
	}
}

func FuzzCanonicalURL(f *testing.F) {
	for _, u := range []string{"http://[fd00:20::0002]:2380", "unix:/run/a", "http://a%zz", "https://A:01", "http://[fe80::1%25eth0]:1", "//://:"} {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, u string) {
		if c := CanonicalURL(u); CanonicalURL(c) != c {
			t.Errorf("%q is %q is %q", u, c, CanonicalURL(c))
		}
	})
}

func FuzzInitialCluster(f *testing.F) {
	for _, seed := range []string{"a=http://a:1", "a=http://a:1,a=http://b:1,,b=unix://x", "a", "=", "a==b", "a=http://[::1]:2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cluster, err := ParseInitialCluster(text)
		if err != nil {
			return
		}
		printed := FormatInitialCluster(cluster)
		again, err := ParseInitialCluster(printed)
		if err != nil {
			t.Fatalf("%q prints as %q, which does not parse: %v", text, printed, err)
		}
		if got := FormatInitialCluster(again); got != printed {
			t.Errorf("%q prints as %q, then as %q", text, printed, got)
		}
		for _, m := range cluster {
			if !slices.IsSorted(m.PeerURLs) {
				t.Errorf("URLs of %q are not sorted", m.Name)
			}
		}
	})
}
