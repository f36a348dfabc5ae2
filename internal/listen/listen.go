// Package listen opens the member's sockets, performs TLS handshakes, and separates gRPC
// from HTTP on a shared port.
//
// In: URLs to listen on, and TLS configurations. Out: net.Listeners, two for a port
// that serves both gRPC and HTTP. Always true: a connection that is silent, slow or does not
// finish its handshake occupies one of a bounded number of places for a bounded time; Close
// leaves no goroutine behind.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive is the TCP keepalive period, which detects clients that have vanished.
const keepAlive = 30 * time.Second

// Options configures a socket.
type Options struct {
	Flag         string // flag that the URL comes from, without dashes; for errors
	ReusePort    bool   // SO_REUSEPORT
	ReuseAddress bool   // SO_REUSEADDR
	Secure       bool   // the caller adds TLS; otherwise https and unixs are rejected
	Places       Places // of open connections, nil for no limit; without a place, new ones wait in the kernel
}

// Listen listens on u: TCP for http and https, a socket file for unix and unixs. Errors name
// the flag and the URL.
func Listen(ctx context.Context, u url.URL, o Options) (net.Listener, error) {
	network, addr := Address(u)
	switch u.Scheme {
	case "https", "unixs":
		if !o.Secure {
			return nil, fmt.Errorf("--%s=%s: no TLS for scheme %q without --cert-file and --key-file", o.Flag, u.String(), u.Scheme)
		}
	case "http", "unix":
	default:
		return nil, fmt.Errorf("--%s=%s: cannot listen with scheme %q", o.Flag, u.String(), u.Scheme)
	}
	if network == "unix" {
		if err := removeStaleSocket(addr); err != nil {
			return nil, fmt.Errorf("--%s=%s: %w%s", o.Flag, u.String(), err, wayOut(err))
		}
	}
	lc := net.ListenConfig{KeepAlive: keepAlive, Control: o.control}
	l, err := lc.Listen(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("--%s=%s: %w%s", o.Flag, u.String(), err, wayOut(err))
	}
	if o.Places != nil {
		l = Limit(l, o.Places)
	}
	return l, nil
}

// TCP listens on the host:port of a flag. Errors start with etcd's text.
func TCP(ctx context.Context, flag, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w: --%s%s", err, flag, wayOut(err))
	}
	return l, nil
}

// wayOut returns a suffix for the error of a failed listen that says what to do about it;
// "" if the error itself is clear.
func wayOut(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ": another process or another flag uses it; stop that process, or choose another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": no interface of this machine has the address; listen on one that has it, or on 0.0.0.0"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return ": the user lacks permission; choose another port (above 1023) or path, or grant the permission"
	}
	return ""
}

// Address returns the address to listen on for u: host and port, or the path of a socket
// file.
func Address(u url.URL) (network, addr string) {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return "unix", u.Host + u.Path
	}
	return "tcp", u.Host
}

// removeStaleSocket removes a socket file that no process serves. A killed member leaves one
// behind.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return &os.PathError{Op: "listen", Path: path, Err: syscall.EADDRINUSE}
	}
	return os.Remove(path)
}

// control sets the socket options before bind.
func (o Options) control(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		if o.ReusePort {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		}
		if o.ReuseAddress {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		}
	})
	return errors.Join(err, failed)
}
