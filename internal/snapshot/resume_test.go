package snapshot

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/engine/pebble"
)

// withoutNote returns the pairs of an engine except the record of what was copied.
func withoutNote(t *testing.T, r engine.Reader) []string {
	t.Helper()
	var out []string
	it, err := r.NewIter(nil, nil)
	must(t, err)
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if slices.Equal(it.Key(), copiedKey) {
			continue
		}
		v, err := it.Value()
		must(t, err)
		out = append(out, string(it.Key())+"="+string(v))
	}
	return out
}

// A read that is stopped, or that a power loss interrupts, at any point is resumed by
// the next one, and the engine then has the same content.
func TestResume(t *testing.T) {
	src := mem.New()
	defer src.Close()
	fill(t, src, rand.New(rand.NewPCG(3, 4)), 20_000)
	path, _ := write(t, src, Options{})
	whole := mem.New()
	defer whole.Close()
	want, err := Read(context.Background(), path, whole, Options{})
	must(t, err)
	for _, crash := range []bool{false, true} {
		disk := vfs.NewCrashableMem()
		open := func() engine.Engine {
			eng, err := pebble.Open("store", pebble.Options{FS: disk, MemTableBytes: 64 << 10})
			must(t, err)
			return eng
		}
		resumed, attempts := int64(0), 0
		for done := false; !done; attempts++ {
			eng := open()
			ctx, cancel := context.WithCancel(context.Background())
			left := 3 // reports beyond what it resumes, until it is stopped
			got, err := Read(ctx, path, eng, Options{Resume: true, BatchBytes: 2 << 10, Progress: func(p Progress) {
				if p.Pairs > p.Resumed {
					if p.Resumed < resumed {
						t.Errorf("resumed %d pairs, and %d before", p.Resumed, resumed)
					}
					if left--; left == 0 && !p.Done {
						if resumed = p.Resumed; crash {
							disk = disk.CrashClone(vfs.CrashCloneCfg{})
						}
						cancel()
					}
				}
			}})
			cancel()
			if err == nil {
				if got.ConsistentIndex != want.ConsistentIndex || got.ClusterVersion != want.ClusterVersion || got.StorageVersion != want.StorageVersion {
					t.Errorf("meta %+v, want %+v", got, want)
				}
				same(t, "the engine", withoutNote(t, eng), withoutNote(t, whole))
				done = true
			} else if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			must(t, eng.Close())
			if attempts > 100 {
				t.Fatal("it does not come to an end")
			}
		}
		if resumed == 0 || attempts < 2 {
			t.Errorf("%d attempts, and nothing was gone on with", attempts)
		}
	}
}

// A copy of one database cannot be resumed from another one, or from the same one after
// a transaction, or into an engine that holds anything else.
func TestResumeRefused(t *testing.T) {
	src := mem.New()
	defer src.Close()
	fill(t, src, rand.New(rand.NewPCG(5, 6)), 100)
	path, _ := write(t, src, Options{})
	fill(t, src, rand.New(rand.NewPCG(7, 8)), 200)
	other, _ := write(t, src, Options{})
	eng := mem.New()
	defer eng.Close()
	_, err := Read(context.Background(), path, eng, Options{Resume: true})
	must(t, err)
	if _, err := Read(context.Background(), path, eng, Options{Resume: true}); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	if _, err := Read(context.Background(), other, eng, Options{Resume: true}); !errors.Is(err, ErrOtherFile) {
		t.Errorf("another database: %v", err)
	}
	later := time.Now().Add(time.Minute) // another file in its place, with the same numbers
	must(t, os.Chtimes(path, later, later))
	if _, err := Read(context.Background(), path, eng, Options{Resume: true}); !errors.Is(err, ErrOtherFile) {
		t.Errorf("a file of another time: %v", err)
	}
	if _, err := Read(context.Background(), path, eng, Options{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("without resuming: %v", err)
	}
	full := mem.New()
	defer full.Close()
	fill(t, full, rand.New(rand.NewPCG(9, 9)), 10)
	if _, err := Read(context.Background(), path, full, Options{Resume: true}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("an engine with something in it: %v", err)
	}
}
