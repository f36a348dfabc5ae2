package sim

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/replica"
)

// disk is the persistent state of a member: files, which lose unsynced data at a crash, and
// stores, which fall back to their last flush. It can capture the state that a crash would
// leave in the middle of file work.
type disk struct {
	*vfs.MemFS
	stores    map[string]*mem.Engine // by directory
	renamed   map[string]bool        // names that a rename has given to another file, until the sync of their directory
	countdown int                    // changes until picture is captured; 0 = never
	w         *World
	picture   *disk
	full      time.Duration // the raft log gets ENOSPC until then
}

func newDisk(w *World) *disk {
	return &disk{MemFS: vfs.NewCrashableMem(), stores: map[string]*mem.Engine{}, renamed: map[string]bool{}, w: w}
}

// crashed returns the disk as a crash at this moment would leave it. vfs draws the surviving
// blocks in map order, which is not deterministic. So the draw is made here, between a clone
// with no and a clone with all unsynced data.
func (d *disk) crashed() *disk {
	c := newDisk(d.w)
	c.full = d.full
	m := merger{
		old: d.MemFS.CrashClone(vfs.CrashCloneCfg{}), now: d.MemFS.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}),
		out: c.MemFS, renamed: d.renamed, take: func() bool { return d.w.rng.IntN(100) < d.w.faults.TornWrites },
	}
	if err := m.dir("/"); err != nil {
		d.w.fail("crash a disk: %w", err)
	}
	for dir, e := range d.stores { // the order does not matter: stores are independent
		if _, err := c.MemFS.Stat(dir); err == nil {
			c.stores[dir] = e.Durable()
		}
	}
	return c
}

// merger copies old to out, and those blocks and files of now that take selects. A file that
// a rename has replaced is the old one or the new one, never some blocks of each.
type merger struct {
	old, now, out *vfs.MemFS
	renamed       map[string]bool
	take          func() bool
}

func (m merger) dir(dir string) error {
	before, err := m.old.List(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	after, err := m.now.List(dir)
	if err != nil {
		return err // synced directories exist in both
	}
	slices.Sort(after) // a superset of before: an unsynced removal is undone
	for _, name := range after {
		path := m.out.PathJoin(dir, name)
		if !slices.Contains(before, name) && !m.take() {
			continue
		}
		if err := m.entry(path); err != nil {
			return err
		}
	}
	d, err := m.out.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (m merger) entry(path string) error {
	info, err := m.now.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.Join(m.out.MkdirAll(path, 0o700), m.dir(path))
	}
	b, err := read(m.now, path)
	if err != nil {
		return err
	}
	if old, err := read(m.old, path); err == nil && m.renamed[strings.TrimPrefix(path, "/")] {
		if !m.take() {
			b = old
		}
	} else if err == nil {
		const block = 4096
		for i := 0; i < len(b); i += block {
			if m.take() {
				j := min(i+block, len(b))
				old = append(old, make([]byte, max(0, j-len(old)))...)
				copy(old[i:j], b[i:j])
			}
		}
		b = old
	}
	f, err := m.out.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func read(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// changed counts a change of the file system and captures the picture when it is due.
func (d *disk) changed() {
	if d.countdown > 0 {
		if d.countdown--; d.countdown == 0 {
			d.picture = d.crashed()
		}
	}
}

// openEngine opens the store in dir with the state of its last flush.
func (d *disk) openEngine(dir string) (engine.Engine, error) {
	e := d.stores[dir]
	if _, err := d.MemFS.Stat(dir); e == nil || err != nil {
		if err := durable.MkdirAll(d.MemFS, dir); err != nil { // durable, as with Pebble
			return nil, err
		}
		e = mem.New()
	} else {
		e = e.Durable()
	}
	d.stores[dir] = e
	d.changed()
	return e, nil
}

// noRoom returns ENOSPC for files of the log while the disk is full.
func (d *disk) noRoom(name string) error {
	if d.w.now >= d.full || !strings.Contains(name, "/wal/") {
		return nil
	}
	d.w.refused++
	return syscall.ENOSPC
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.noRoom(name); err != nil {
		return nil, err
	}
	f, err := d.MemFS.Create(name, c)
	d.changed()
	return diskFile{f, d, name}, err
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if _, err := d.MemFS.Stat(name); err != nil {
		if err := d.noRoom(name); err != nil {
			return nil, err
		}
	}
	f, err := d.MemFS.OpenReadWrite(name, c, opts...)
	return diskFile{f, d, name}, err
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.MemFS.OpenDir(name)
	return diskFile{f, d, name}, err
}

// Rename moves a store along with its directory. It stays known under the old name as well,
// which is what a crash may leave.
func (d *disk) Rename(from, to string) error {
	defer d.changed()
	if to != from {
		d.renamed[to] = true
	}
	err := d.MemFS.Rename(from, to)
	if e := d.stores[from]; e != nil && err == nil {
		d.stores[to] = e
	}
	return err
}

func (d *disk) Remove(name string) error {
	defer d.changed()
	return d.MemFS.Remove(name)
}

func (d *disk) RemoveAll(name string) error {
	defer d.changed()
	if e := d.stores[name]; e != nil {
		if err := e.Close(); err != nil && !errors.Is(err, engine.ErrClosed) {
			return err
		}
		delete(d.stores, name)
	}
	return d.MemFS.RemoveAll(name)
}

type diskFile struct {
	vfs.File
	d    *disk
	name string
}

// WriteAt writes a part or nothing while the disk is full, as copy-on-write file systems
// do. Zeros always succeed: they preallocate.
func (f diskFile) WriteAt(b []byte, off int64) (int, error) {
	if len(bytes.Trim(b, "\x00")) == 0 {
		return f.File.WriteAt(b, off)
	}
	if full := f.d.noRoom(f.name); full != nil {
		n, err := f.File.WriteAt(b[:f.d.w.rng.IntN(2)*len(b)/2], off)
		return n, errors.Join(full, err)
	}
	return f.File.WriteAt(b, off)
}

func (f diskFile) Sync() error {
	defer f.d.changed()
	err := f.File.Sync()
	for name := range f.d.renamed { // of a directory: what has replaced a file stays
		if err == nil && f.d.PathDir(name) == f.name {
			delete(f.d.renamed, name)
		}
	}
	return err
}

func (f diskFile) SyncData() error {
	defer f.d.changed()
	return f.File.SyncData()
}

// attempt runs one step of file work. With some probability the member loses power in the
// middle of it: then attempt returns false and the member is down.
func (n *node) attempt(step string, do func() error) bool {
	w := n.w
	if !w.calm && w.chance(w.faults.TornSteps) {
		changes := 10
		if step == string(replica.Import) { // it changes few files: later than that is seldom in the middle
			changes = 3
		}
		n.disk.countdown = 1 + w.rng.IntN(changes)
	}
	err := do()
	picture := n.disk.picture
	n.disk.countdown, n.disk.picture = 0, nil
	switch {
	case picture != nil:
		w.log("power lost at %d during %s", n.index, step)
		w.torn[step]++
		n.crash(picture)
		w.after(w.between(10e6, w.faults.Outage), n.start)
		return false
	case err != nil:
		w.fail("%s at member %d: %w", step, n.index, err)
		return false
	}
	return true
}
