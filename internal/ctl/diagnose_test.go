package ctl

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
