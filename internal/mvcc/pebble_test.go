package mvcc

import (
	"math/rand"
	randv2 "math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
)

// The same operations as on the in-memory engine, with crashes of a disk that loses all
// that was not synced: exactly what was flushed must be there, because the model is that
// of the last Flush.
func TestModelPebble(t *testing.T) {
	for seed := range int64(3) {
		fs := vfs.NewCrashableMem()
		open := func() engine.Engine {
			e, err := pebble.Open("db", pebble.Options{FS: fs, CacheBytes: 1 << 10}) // lists are read past so small a cache
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		w := &world{t: t, rnd: rand.New(rand.NewSource(seed)), eng: open(), m: newModel(), keys: 10 + int(seed)*40,
			opts: Options{Manual: true, CompactionBatch: 7, PinBytes: 64 << 10, HashKeys: 1 + int(seed%3)*20}}
		w.crash = func() engine.Engine {
			left := fs.CrashClone(vfs.CrashCloneCfg{RNG: randv2.New(randv2.NewPCG(1, 2))})
			if err := w.eng.Close(); err != nil {
				t.Fatal(err)
			}
			fs = left
			return open()
		}
		w.run(400)
		if err := w.eng.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
