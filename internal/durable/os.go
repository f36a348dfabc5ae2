package durable

import (
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// OS is the file system of the process. Files that Create makes are readable by their
// owner only, from the first moment.
var OS vfs.FS = private{vfs.Default}

type private struct{ vfs.FS }

func (p private) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return p.OpenReadWrite(name, c)
}

// WriteFileMode is WriteFile on OS for a file with other permissions than owner
// read and write.
func WriteFileMode(path string, content []byte, mode os.FileMode) error {
	f, err := Create(OS, path+TempSuffix)
	if err != nil {
		return err
	}
	if err := os.Chmod(f.tmp, mode); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), f.Discard())
	}
	return f.write(path, content)
}
