package main

import (
	"os"
	"syscall"
	"testing"
)

// The first process of a container cannot end itself by a signal, and exits.
func TestEndsAsFirstProcess(t *testing.T) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	for name, args := range programs {
		for _, ignored := range []string{"", "INT TERM"} {
			for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
				t.Run(name+" ignores "+ignored+", gets "+s.String(), func(t *testing.T) {
					t.Parallel()
					p := serve(t, attr, ignored, args...)
					if got := p.ends(t, s); !got.Exited() || got.ExitStatus() != 0 {
						t.Errorf("ended with status %#x, want exit code 0\n%s", got, p.output.String())
					}
				})
			}
		}
	}
}
