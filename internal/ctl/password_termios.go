//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package ctl

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// hideInput disables the echo of the terminal f until the returned function is called. It
// does nothing if f is not a terminal. A signal in between restores the terminal before it
// takes effect.
func hideInput(f *os.File) (show func()) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return func() {}
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, setTermios, &quiet); err != nil {
		return func() {}
	}
	restore := func() { _ = unix.IoctlSetTermios(fd, setTermios, was) }

	sig := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(sig, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		select {
		case got := <-sig:
			restore()
			signal.Reset()
			_ = unix.Kill(unix.Getpid(), got.(unix.Signal))
		case <-done:
		}
	}()
	return func() {
		signal.Stop(sig)
		close(done)
		restore()
	}
}
