package diagnose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestWhatToCheck(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "is etcd running"},
		{&net.OpError{Err: &net.DNSError{IsNotFound: true}}, "check the name"},
		{&net.OpError{Err: os.NewSyscallError("connect", syscall.ENOENT)}, "no such socket"},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "--cacert"},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}}}, "name or an address"},
		{&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, "clock"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, "--cert and --key"},
		{fmt.Errorf("dial: %w", context.DeadlineExceeded), "firewalls"},
	} {
		if got := whatToCheck(c.err, false); !strings.Contains(got, c.want) {
			t.Errorf("whatToCheck(%v) = %q, want something with %q", c.err, got, c.want)
		}
	}
	if got := whatToCheck(syscall.EPERM, true); got != "" {
		t.Errorf("whatToCheck of something else = %q", got)
	}
}

func TestDialTarget(t *testing.T) {
	type target struct {
		network, addr string
		tls           bool
	}
	for _, c := range []struct {
		endpoint string
		withTLS  bool
		want     target
	}{
		{"127.0.0.1:2379", false, target{"tcp", "127.0.0.1:2379", false}},
		{"127.0.0.1:2379", true, target{"tcp", "127.0.0.1:2379", true}},
		{"http://a:2379", true, target{"tcp", "a:2379", false}},
		{"https://[::1]:2379", false, target{"tcp", "[::1]:2379", true}},
		{"unix:///run/etcd.sock", false, target{"unix", "/run/etcd.sock", false}},
		{"unixs:sock", false, target{"unix", "sock", true}},
	} {
		network, addr, useTLS := dialTarget(c.endpoint, c.withTLS)
		if got := (target{network, addr, useTLS}); got != c.want {
			t.Errorf("dialTarget(%q, %v) = %v, want %v", c.endpoint, c.withTLS, got, c.want)
		}
	}
}
