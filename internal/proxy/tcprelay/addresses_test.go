package tcprelay

import (
	"errors"
	"fmt"
	"net"
	"testing"
)

func TestParseEndpoints(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want string
		err  string
	}{
		{in: []string{"127.0.0.1:2379"}, want: "[127.0.0.1:2379]"},
		{in: []string{"localhost:2379", "http://a:1", "https://b.example.com:65535/path", "unix://c:3"}, want: "[localhost:2379 a:1 b.example.com:65535 c:3]"},
		{in: []string{"[::1]:2379", "http://[fe80::1]:1"}, want: "[::1:2379 fe80::1:1]"},
		{in: nil, want: "[]"},
		{in: []string{"abc"}, err: `error parsing endpoint "abc"`},
		{in: []string{"a:1", ""}, err: `error parsing endpoint ""`},
		{in: []string{"http://a"}, err: `error parsing endpoint "a"`},
		{in: []string{"a:b"}, err: `error parsing endpoint "a:b"`},
		{in: []string{"a:65536"}, err: `error parsing endpoint "a:65536"`},
		{in: []string{"a:0"}, err: `error parsing endpoint "a:0"`},
		{in: []string{"a:-1"}, err: `error parsing endpoint "a:-1"`},
		{in: []string{"::1:2379"}, err: `error parsing endpoint "::1:2379"`},
	} {
		got, err := ParseEndpoints(tc.in)
		if fmt.Sprint(err) != tc.err && (err != nil || tc.err != "") {
			t.Errorf("%q: error %v, want %q", tc.in, err, tc.err)
		}
		var list []string
		for _, e := range got {
			list = append(list, fmt.Sprintf("%s:%d", e.Target, e.Port))
		}
		if fmt.Sprint(list) != tc.want && tc.err == "" {
			t.Errorf("%q: got %v, want %s", tc.in, list, tc.want)
		}
	}
}

func TestCheck(t *testing.T) {
	r := Resolver{
		LookupHost: func(host string) ([]string, error) {
			if a := net.ParseIP(host); a != nil {
				return []string{host}, nil
			}
			switch host {
			case "localhost":
				return []string{"::1", "127.0.0.1"}, nil
			case "me.example.com.":
				return []string{"192.0.2.1"}, nil
			}
			return nil, errors.New("no such host")
		},
		Interfaces: func() ([]net.Addr, error) {
			return []net.Addr{&net.IPNet{IP: net.ParseIP("192.0.2.1"), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2001:db8::1"), Mask: net.CIDRMask(64, 128)}}, nil
		},
	}
	self := func(host, addr, listen string) string {
		return fmt.Sprintf("SRV or endpoint (%s:7->%s:7) should not resolve to the gateway listen addr (%s)", host, addr, listen)
	}
	for _, tc := range []struct{ listen, host, err string }{
		{"127.0.0.1:8", "127.0.0.1", ""},
		{"192.0.2.1:7", "127.0.0.1", ""},
		{"127.0.0.2:7", "127.0.0.1", ""},
		{"zzz", "a", "failed to validate listen address: zzz"},
		{":7", "a", "failed to resolve listen host: "},
		{"nowhere:7", "a", "failed to resolve listen host: nowhere"},
		{"127.0.0.1:7", "nowhere", "failed to resolve endpoint host: nowhere"},
		{"127.0.0.1:7", "127.0.0.1", self("127.0.0.1", "127.0.0.1", "127.0.0.1:7")},
		{"localhost:7", "127.0.0.1", self("127.0.0.1", "127.0.0.1", "localhost:7")},
		{"127.0.0.1:7", "localhost", self("localhost", "127.0.0.1", "127.0.0.1:7")},
		{"192.0.2.1:7", "me.example.com.", self("me.example.com.", "192.0.2.1", "192.0.2.1:7")},
		{"0.0.0.0:7", "me.example.com.", self("me.example.com.", "192.0.2.1", "0.0.0.0:7")},
		{"0.0.0.0:7", "127.0.0.3", self("127.0.0.3", "127.0.0.3", "0.0.0.0:7")},
		{"0.0.0.0:7", "192.0.2.2", ""},
		{"0.0.0.0:7", "2001:db8::1", ""}, // listens on IPv4 alone
		{"[::]:7", "2001:db8::1", self("2001:db8::1", "2001:db8::1", "[::]:7")},
		{"[::]:7", "192.0.2.1", self("192.0.2.1", "192.0.2.1", "[::]:7")},
		{"127.0.0.1:7", "0.0.0.0", self("0.0.0.0", "0.0.0.0", "127.0.0.1:7")},
		{"192.0.2.1:7", "0.0.0.0", ""},
	} {
		err := r.Check(tc.listen, []net.SRV{{Target: "192.0.2.9", Port: 9}, {Target: tc.host, Port: 7}})
		if got := fmt.Sprint(err); got != tc.err && (err != nil || tc.err != "") {
			t.Errorf("listening on %s with endpoint %s: %q, want %q", tc.listen, tc.host, got, tc.err)
		}
	}
	if err := r.Check("127.0.0.1:7", nil); fmt.Sprint(err) != "no endpoints found" {
		t.Errorf("without endpoints: %v", err)
	}
}
