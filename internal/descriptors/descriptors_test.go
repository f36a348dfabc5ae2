package descriptors

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestDivide(t *testing.T) {
	if _, err := Divide(Reserved); !errors.Is(err, ErrTooFew) {
		t.Errorf("limit %d: %v", Reserved, err)
	}
	for _, limit := range []uint64{300, 512, 1024, 4096, 65536, 1 << 40} {
		b, err := Divide(limit)
		if err != nil {
			t.Fatal(err)
		}
		// Two stores: one is replaced by the other while a snapshot is installed.
		all := uint64(Reserved + 2*(b.Store.Cached+b.Store.Direct) + b.Clients + b.Peers + b.Metrics)
		if all > limit {
			t.Errorf("limit %d: %+v, with what is reserved %d", limit, b, all)
		}
		if b.Clients < int(min(limit, 1<<30)-Reserved)/3 {
			t.Errorf("limit %d: few are left for clients: %+v", limit, b)
		}
	}
	for _, limit := range []uint64{151, 200} {
		b, err := Divide(limit)
		if least := min(b.Store.Cached, b.Store.Direct, b.Clients, b.Peers, b.Metrics); err != nil || least < 4 {
			t.Errorf("limit %d: %+v, %v", limit, b, err)
		}
	}
	if b, _ := Divide(65536); b.Store != (Store{Cached: 500, Direct: 400}) || b.Clients < 58000 {
		t.Errorf("limit 65536: %+v", b)
	}
}

// scarce is a file system without descriptors for some calls.
type scarce struct {
	vfs.FS
	left atomic.Int64 // calls that fail
	err  error
}

func (s *scarce) check() error {
	if s.left.Add(-1) >= 0 {
		return &os.PathError{Op: "open", Path: "f", Err: s.err}
	}
	return nil
}

func (s *scarce) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.FS.Open(name, opts...)
}

func (s *scarce) OpenDir(name string) (vfs.File, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.FS.OpenDir(name)
}

func (s *scarce) List(name string) ([]string, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.FS.List(name)
}

// What opens files to read them waits until there is a descriptor, and says so once.
func TestWaiting(t *testing.T) {
	mem := vfs.NewMem()
	f, err := mem.Create("f", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	opens := func(f vfs.File, err error) error {
		if err == nil {
			f.Close()
		}
		return err
	}
	for name, call := range map[string]func(vfs.FS) error{
		"Open":    func(fs vfs.FS) error { return opens(fs.Open("f")) },
		"OpenDir": func(fs vfs.FS) error { return opens(fs.OpenDir("")) },
		"List":    func(fs vfs.FS) error { _, err := fs.List(""); return err },
	} {
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
			core, lines := observer.New(zap.InfoLevel)
			s := &scarce{FS: mem, err: errno}
			s.left.Store(3)
			if err := call(Waiting(s, nil, zap.New(core))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if s.left.Load() >= 0 {
				t.Errorf("%s did not wait", name)
			}
			if got := fmt.Sprint(len(lines.FilterLevelExact(zap.ErrorLevel).All()), len(lines.FilterLevelExact(zap.InfoLevel).All())); got != "1 1" {
				t.Errorf("%s: %v", name, lines.All())
			}
		}
	}
}

// Other errors, and the end of the owner, end a wait.
func TestWaitingEnds(t *testing.T) {
	done := make(chan struct{})
	close(done)
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EMFILE} {
		s := &scarce{FS: vfs.NewMem(), err: errno}
		s.left.Store(1 << 30)
		if _, err := Waiting(s, done, zap.NewNop()).Open("f"); !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
		if n := 1<<30 - s.left.Load(); n != 1 {
			t.Errorf("%v: %d attempts", errno, n)
		}
	}
}
