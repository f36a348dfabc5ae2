package datadir

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/clock"
	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/scrub"
)

// contents reads everything in a directory, as a start and a scrub do. It returns the first
// damage that is reported, with the file that it names.
func contents(t *testing.T, l Layout) (all []string, file string, err error) {
	t.Helper()
	if err := l.CheckFormat(); err != nil {
		return nil, named(err), err
	}
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{NoBackground: true, KeepSegments: -1})
	if err != nil {
		return nil, named(err), err
	}
	defer log.Close()
	eng, err := OpenStore(l, opt.withDefaults().Logger)
	if err != nil {
		return nil, named(err), err
	}
	defer eng.Close()
	for b := engine.Alarm; b <= engine.Local; b++ {
		records, err := enginetest.Records(eng, b)
		if err != nil {
			return nil, named(err), err
		}
		all = append(all, records...)
	}
	r := &scrub.Reader{FS: l.FS, Clock: clock.System}
	r.Begin(t.Context())
	for _, step := range []func(*scrub.Reader) error{l.Scrub, log.Scrub, eng.(engine.Scrubber).Scrub} {
		if err := step(r); err != nil {
			return nil, named(err), err
		}
	}
	if r.Damage > 0 {
		return nil, r.Found[0].File, r.Found[0].Err
	}
	return append(all, log.HardState().String(), log.Mark().ConfState.String()), "", nil
}

func named(err error) string { return err.Error() }

// Whichever bit of a restored directory flips, it is detected by a start, a read or the
// scrub, which name the file, or nothing that is read changes.
func TestFlipsInRestoredDirectory(t *testing.T) {
	fs := vfs.NewMem()
	src := Layout{FS: fs, DataDir: "src"}
	plain.make(t, src)
	founders, cluster, err := membership.Founders([]membership.InitialMember{{Name: "a", PeerURLs: []string{"http://a:1"}}}, "token")
	must(t, err)
	made := Layout{FS: fs, DataDir: "new"}
	must(t, RestoreInto(ctx, made, Restore{File: src.DB(), LocalID: founders[0].ID, ClusterID: cluster, Founders: founders}, opt))
	must(t, made.WriteOwner(founders[0].ID, cluster))
	paths := filesBelow(t, fs, "new")
	files := map[string][]byte{}
	for _, path := range paths {
		files[path], err = readFile(fs, path)
		must(t, err)
	}
	// restored returns the directory with one bit changed. Each is a copy, as a start writes.
	restored := func(changed string, at int, x byte) Layout {
		l := Layout{FS: vfs.NewMem(), DataDir: "new"}
		for _, path := range paths {
			must(t, l.FS.MkdirAll(l.FS.PathDir(path), 0o700))
			b := slices.Clone(files[path])
			if path == changed {
				b[at] ^= x
			}
			writeAll(t, l.FS, path, b)
		}
		return l
	}
	want, _, err := contents(t, restored("", 0, 0))
	must(t, err)
	rng := rand.New(rand.NewPCG(3, 9))
	found, harmless := map[string]int{}, map[string]int{}
	for range 2000 {
		path := paths[rng.IntN(len(paths))]
		used := len(bytes.TrimRight(files[path], "\x00")) // the rest is preallocated
		if used == 0 {
			continue
		}
		at, x := rng.IntN(used), byte(1)<<rng.IntN(8)
		kind := strings.TrimRight(filepath.Base(path), "0123456789")
		kind = kind[strings.LastIndexByte(kind, '.')+1:]
		got, file, err := contents(t, restored(path, at, x))
		switch {
		case err != nil && kind == "MANIFEST-" && strings.Contains(file, filepath.Dir(path)):
			found[kind]++ // the list of tables is cut off there, and refers to tables of the past
		case err != nil && !strings.Contains(file, filepath.Base(path)):
			t.Errorf("%s: byte %d changed by %#x: the damage is in %q: %v", path, at, x, file, err)
		case err != nil:
			found[kind]++
		case !slices.Equal(got, want):
			t.Errorf("%s: byte %d changed by %#x: other content, and nothing was reported", path, at, x)
		default:
			harmless[kind]++
		}
	}
	t.Logf("found: %v; without effect: %v", found, harmless)
	if found["sst"] == 0 || found["wal"] == 0 || found["OWNER"] == 0 || found["MANIFEST-"] == 0 {
		t.Error("not all kinds of files were damaged")
	}
	if harmless["sst"]+harmless["OWNER"] > 0 {
		t.Error("these files have no byte without effect")
	}
}

func filesBelow(t *testing.T, fs vfs.FS, dir string) (out []string) {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	slices.Sort(names)
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		if st, err := fs.Stat(path); err == nil && st.IsDir() {
			out = append(out, filesBelow(t, fs, path)...)
		} else {
			out = append(out, path)
		}
	}
	return out
}
