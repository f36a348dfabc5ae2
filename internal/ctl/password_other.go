//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package ctl

import "os"

// hideInput does nothing on systems without termios: the password is echoed.
func hideInput(*os.File) (show func()) { return func() {} }
