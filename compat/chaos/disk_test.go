package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"quorate/compat/child"
)

// disk is the file system of one member: an image in memory, so that the only slow disk is one that a fault made
// slow. It keeps what a killed process has written, and would lose it with the power.
type disk struct {
	mount  string
	frozen bool
	full   bool
}

const diskSize = "400M"

func newDisk(t *testing.T, dir string, i int) *disk {
	t.Helper()
	image, d := filepath.Join(dir, fmt.Sprintf("disk%d.img", i)), &disk{mount: filepath.Join(dir, fmt.Sprintf("disk%d", i))}
	if err := os.Mkdir(d.mount, 0o700); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "truncate", "--size="+diskSize, image)
	child.Must(t, "mkfs.ext4", "-q", "-m", "0", image)
	child.Must(t, "mount", "-o", "loop", image, d.mount)
	t.Cleanup(func() {
		d.freeze(false)
		child.Must(t, "umount", "--lazy", d.mount)
	})
	return d
}

// freeze makes every write of the file system wait, until it is called with false.
func (d *disk) freeze(on bool) error {
	if d.frozen == on {
		return nil
	}
	f, err := os.Open(d.mount)
	if err != nil {
		return err
	}
	defer f.Close()
	request := uintptr(0xc0045878) // FITHAW
	if on {
		request = 0xc0045877 // FIFREEZE
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, 0); errno != 0 {
		return fmt.Errorf("freeze %s, %v: %w", d.mount, on, errno)
	}
	d.frozen = on
	return nil
}

// fill takes all but left bytes of the file system, or gives them back.
func (d *disk) fill(on bool, left uint64) error {
	ballast := filepath.Join(d.mount, "ballast")
	d.full = on
	if !on {
		return os.Remove(ballast)
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.mount, &s); err != nil {
		return err
	}
	f, err := os.Create(ballast)
	if err != nil {
		return err
	}
	defer f.Close()
	if free := s.Bavail * uint64(s.Bsize); free > left {
		return syscall.Fallocate(int(f.Fd()), 0, 0, int64(free-left))
	}
	return nil
}
