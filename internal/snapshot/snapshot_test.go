package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	bolt "go.etcd.io/bbolt"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func revKey(main, sub uint64, tombstone bool) []byte {
	k := binary.BigEndian.AppendUint64(nil, main)
	k = binary.BigEndian.AppendUint64(append(k, '_'), sub)
	if tombstone {
		k = append(k, 't')
	}
	return k
}

// fill puts pairs into every bucket but leaves some empty. Sizes range from zero to far
// beyond a page.
func fill(t testing.TB, eng engine.Engine, rng *rand.Rand, keys int) {
	t.Helper()
	b := eng.NewBatch()
	set := func(bucket engine.Bucket, key, value []byte) {
		b.Set(bucket.K(key), value)
	}
	for i := range keys {
		n := rng.IntN(300)
		switch rng.IntN(200) {
		case 0:
			n = rng.IntN(40_000)
		case 1:
			n = 0
		}
		set(engine.Key, revKey(uint64(i/3), uint64(i%3), rng.IntN(9) == 0), bytes.Repeat([]byte{byte(i)}, n))
	}
	for i := range rng.IntN(60) {
		set(engine.Lease, binary.BigEndian.AppendUint64(nil, uint64(i)), []byte{8, byte(i)})
		set(engine.AuthUsers, []byte(strings.Repeat("u", 1+rng.IntN(3000))), []byte("user"))
	}
	set(engine.Auth, []byte("authEnabled"), []byte{1})
	set(engine.Cluster, []byte("clusterVersion"), []byte("3.7.0"))
	set(engine.Meta, []byte("consistent_index"), binary.BigEndian.AppendUint64(nil, 4711))
	set(engine.Meta, []byte("term"), binary.BigEndian.AppendUint64(nil, 9))
	set(engine.Meta, []byte("confState"), []byte(`{"voters":[7,18446744073709551615],"learners":[8],"auto_leave":false}`))
	set(engine.Meta, []byte("storageVersion"), []byte("3.7.0"))
	must(t, b.Commit())
}

// pairs returns everything in an engine.
func pairs(t testing.TB, r engine.Reader) []string {
	t.Helper()
	it, err := r.NewIter(nil, nil)
	must(t, err)
	defer it.Close()
	var all []string
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		all = append(all, fmt.Sprintf("%x=%x", it.Key(), v))
	}
	must(t, it.Error())
	return all
}

// boltPairs returns everything in a database as bbolt sees it, after bbolt's check.
func boltPairs(t testing.TB, path string) []string {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	var all []string
	must(t, db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("bbolt check: %v", err)
		}
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			bucket, ok := bucketByName[string(name)]
			if !ok {
				return nil
			}
			if st := b.Stats(); bucket == engine.Key && st.BranchOverflowN > 0 {
				t.Errorf("branch pages of short keys need %d more pages", st.BranchOverflowN)
			}
			return b.ForEach(func(k, v []byte) error {
				all = append(all, fmt.Sprintf("%x=%x", bucket.K(k), v))
				return nil
			})
		})
	}))
	return all
}

// write creates a database file on disk.
func write(t testing.TB, r engine.Reader, o Options) (path string, i *Image) {
	t.Helper()
	i, err := Measure(ctx, r, o)
	must(t, err)
	path = filepath.Join(t.TempDir(), "db")
	out, err := os.Create(path)
	must(t, err)
	must(t, i.WriteTo(ctx, out))
	st, err := out.Stat()
	must(t, err)
	must(t, out.Close())
	if st.Size() != i.Size() {
		t.Fatalf("database has %d bytes, Size() said %d", st.Size(), i.Size())
	}
	return path, i
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Fatalf("%s: %d pairs, want %d; they differ from pair %d on", what, len(got), len(want), i)
	}
}

// TestRoundTrip writes stores of many sizes, has bbolt check and read them, and reads
// them back.
func TestRoundTrip(t *testing.T) {
	for _, pageSize := range []int{0, 1024, 65536} {
		for _, keys := range []int{0, 1, 2, 3, 10, 11, 12, 13, 100, 1000, 6000} {
			t.Run(fmt.Sprintf("page %d keys %d", pageSize, keys), func(t *testing.T) {
				eng := mem.New()
				fill(t, eng, rand.New(rand.NewPCG(uint64(keys), 1)), keys)
				want := pairs(t, eng)
				path, f := write(t, eng, Options{PageSize: pageSize})
				same(t, "bbolt", boltPairs(t, path), want)

				back := mem.New()
				meta, err := Read(ctx, path, back, Options{BatchBytes: 10_000})
				must(t, err)
				same(t, "read back", pairs(t, back), want)
				same(t, "read back, after a crash", pairs(t, back.Crash()), want)
				for _, m := range []Meta{meta, f.meta} {
					got := fmt.Sprintln(m.ConsistentIndex, m.Term, m.ConfState.GetVoters(), m.ConfState.GetLearners(), m.ClusterVersion, m.StorageVersion)
					if want := "4711 9 [7 18446744073709551615] [8] 3.7.0 3.7.0\n"; got != want {
						t.Errorf("meta: got %q, want %q", got, want)
					}
				}
				if got, want := hashKeys(t, path), hashEngine(t, eng); got != want {
					t.Errorf("hash of the key bucket %08x, want %08x", got, want)
				}
			})
		}
	}
}

// hashKeys is HashKV at the current revision of a store that was never
// compacted, over the file as bbolt reads it.
func hashKeys(t *testing.T, path string) uint32 {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	h := crc32.New(castagnoli)
	h.Write([]byte("key"))
	must(t, db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			h.Write(k)
			h.Write(v)
			return nil
		})
	}))
	return h.Sum32()
}

func hashEngine(t *testing.T, r engine.Reader) uint32 {
	h := crc32.New(castagnoli)
	h.Write([]byte("key"))
	it, err := r.NewIter(engine.Key.Bounds())
	must(t, err)
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		h.Write(it.Key()[1:])
		h.Write(v)
	}
	return h.Sum32()
}

// TestBboltContinues has bbolt change a file that we wrote, as etcd does after receiving
// it, and reads the result, which has gone through splits, merges and free pages.
func TestBboltContinues(t *testing.T) {
	eng := mem.New()
	rng := rand.New(rand.NewPCG(1, 2))
	fill(t, eng, rng, 3000)
	path, _ := write(t, eng, Options{})
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: true})
	must(t, err)
	for round := range 20 {
		must(t, db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("key"))
			for range 150 {
				k := revKey(uint64(rng.IntN(1100)), uint64(rng.IntN(3)), false)
				if round%2 == 0 {
					must(t, b.Put(k, bytes.Repeat([]byte{1}, rng.IntN(2000))))
				} else {
					must(t, b.Delete(k))
				}
			}
			if round == 3 {
				x, err := tx.CreateBucket([]byte("unknown"))
				must(t, err)
				must(t, x.Put([]byte("a"), []byte("b")))
			}
			must(t, tx.Bucket([]byte("lease")).Put([]byte("12345678"), []byte("l")))
			return nil
		}))
	}
	must(t, db.Close())
	want := boltPairs(t, path)
	back := mem.New()
	_, err = Read(ctx, path, back, Options{})
	must(t, err)
	same(t, "read", pairs(t, back), want)
	again, _ := write(t, back, Options{})
	same(t, "written again", boltPairs(t, again), want)
}

// TestMetaPages damages one meta page, then both.
func TestMetaPages(t *testing.T) {
	eng := mem.New()
	fill(t, eng, rand.New(rand.NewPCG(3, 3)), 50)
	want := pairs(t, eng)
	path, _ := write(t, eng, Options{})
	page := os.Getpagesize()
	good, err := os.ReadFile(path)
	must(t, err)
	for _, damaged := range [][]int{{20}, {page + 20}, {20, page + 20}} {
		b := slices.Clone(good)
		for _, at := range damaged {
			b[at] ^= 1
		}
		must(t, os.WriteFile(path, b, 0o600))
		back := mem.New()
		_, err := Read(ctx, path, back, Options{})
		var ce *CorruptError
		if len(damaged) == 2 {
			if !errors.As(err, &ce) {
				t.Errorf("both meta pages damaged: %v, want CorruptError", err)
			}
			continue
		}
		must(t, err)
		same(t, "read", pairs(t, back), want)
	}
}

// TestDamage truncates and changes a database. Structural damage is found; nothing
// panics or loops; what is accepted still has order and shape.
func TestDamage(t *testing.T) {
	eng := mem.New()
	fill(t, eng, rand.New(rand.NewPCG(4, 4)), 250)
	path, _ := write(t, eng, Options{PageSize: 1024})
	good, err := os.ReadFile(path)
	must(t, err)
	fs := vfs.NewMem()
	try := func(b []byte) error {
		put(t, fs, "db", b)
		return walk("db", Options{FS: fs})
	}
	must(t, try(good))
	must(t, try(append(slices.Clone(good), make([]byte, 32)...))) // a backup carries its hash
	for n := 0; n < len(good); n += 1 + n/7 {
		var ce *CorruptError
		if err := try(good[:n]); !errors.As(err, &ce) || ce.File != "db" {
			t.Fatalf("cut to %d of %d bytes: %v, want a CorruptError", n, len(good), err)
		}
	}
	rng := rand.New(rand.NewPCG(5, 5))
	found := 0
	pages := len(good) / 1024
	for range 800 {
		b := slices.Clone(good)
		// Headers and elements: the parts of a page that are followed.
		at := (2+rng.IntN(pages-2))*1024 + rng.IntN(64)
		b[at] ^= byte(1 + rng.IntN(255))
		if err := try(b); err != nil {
			found++
			if ce := (*CorruptError)(nil); !errors.As(err, &ce) {
				t.Fatalf("change at %d: %v, want a CorruptError", at, err)
			}
		}
	}
	if found < 240 {
		t.Errorf("%d of 800 changes found", found)
	}
	// Branches that lead elsewhere, including to themselves and to pages that lead to them,
	// or that have another key for their first child.
	le := binary.LittleEndian
	branches := 0
	for id := 2; id < pages; id++ {
		p := good[id*1024:]
		if le.Uint64(p) != uint64(id) || le.Uint16(p[8:]) != flagBranch {
			continue
		}
		branches++
		first := pageHeaderBytes
		for range 10 {
			target := rng.Uint64N(uint64(pages))
			b := slices.Clone(good)
			le.PutUint64(b[id*1024+first+8:], target)
			if target != le.Uint64(p[first+8:]) && try(b) == nil {
				t.Errorf("branch %d leads to page %d instead of %d: not noticed", id, target, le.Uint64(p[first+8:]))
			}
		}
		b := slices.Clone(good)
		key := id*1024 + first + int(le.Uint32(p[first:]))
		b[key+int(le.Uint32(p[first+4:]))-1]++
		if try(b) == nil {
			t.Errorf("branch %d has a key for its first child that is beyond it: not noticed", id)
		}
	}
	if branches < 5 {
		t.Errorf("only %d branch pages", branches)
	}
	// Two buckets over one tree.
	b := slices.Clone(good)
	root := b[le.Uint64(b[pageHeaderBytes+16:])*1024:][:1024]
	key, lease := bytes.Index(root, []byte("key"))+3, bytes.Index(root, []byte("lease"))+5
	copy(root[lease:lease+8], root[key:key+8])
	if err := try(b); err == nil || !strings.Contains(err.Error(), "page is used twice") {
		t.Errorf("two buckets over one tree: %v", err)
	}
}

// Two buckets over one page without overflow pages are refused as well.
func TestPageUsedTwice(t *testing.T) {
	eng := mem.New()
	b := eng.NewBatch()
	b.Set(engine.AuthRoles.K([]byte("role")), []byte("of nobody"))
	b.Set(engine.AuthUsers.K([]byte("user")), []byte("unknown"))
	must(t, b.Commit())
	path, _ := write(t, eng, Options{PageSize: 1024})
	file, err := os.ReadFile(path)
	must(t, err)
	root := file[binary.LittleEndian.Uint64(file[pageHeaderBytes+16:])*1024:][:1024]
	roles, users := bytes.Index(root, []byte("authRoles"))+9, bytes.Index(root, []byte("authUsers"))+9
	copy(root[users:users+8], root[roles:roles+8])
	must(t, os.WriteFile(path, file, 0o600))
	if _, err := Read(ctx, path, mem.New(), Options{}); err == nil || !strings.Contains(err.Error(), "page is used twice") {
		t.Errorf("two buckets over one page: %v", err)
	}
}

func put(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, category)
	must(t, err)
	_, err = f.Write(bytes.Clone(b))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func TestRefused(t *testing.T) {
	full := mem.New()
	fill(t, full, rand.New(rand.NewPCG(6, 6)), 10)
	path, _ := write(t, full, Options{})
	if _, err := Read(ctx, path, full, Options{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("Read into an engine that is not empty: %v, want ErrNotEmpty", err)
	}
	if _, err := Read(ctx, path+"x", mem.New(), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read of a missing file: %v, want ErrNotExist", err)
	}
	if _, err := Measure(ctx, full, Options{PageSize: 1000}); !errors.Is(err, errPageSize) {
		t.Errorf("Measure with pages of 1000 bytes: %v", err)
	}
	bad := mem.New()
	b := bad.NewBatch()
	b.Set(engine.Key.K([]byte("not a revision")), nil)
	must(t, b.Commit())
	path, _ = write(t, bad, Options{})
	var ce *CorruptError
	if err := walk(path, Options{}); !errors.As(err, &ce) {
		t.Errorf("a key that is not a revision: %v, want CorruptError", err)
	}
}

func TestCancel(t *testing.T) {
	cause := errors.New("enough")
	c, cancel := context.WithCancelCause(ctx)
	cancel(cause)
	dir := t.TempDir()
	if _, err := Measure(c, &synthetic{n: 10_000}, Options{}); !errors.Is(err, cause) {
		t.Errorf("Measure: %v, want the cause", err)
	}
	if _, err := Export(c, &synthetic{n: 10_000}, filepath.Join(dir, "db"), Options{}); !errors.Is(err, cause) {
		t.Errorf("Export: %v, want the cause", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	path, _ := write(t, &synthetic{n: 10_000}, Options{})
	if _, err := Read(c, path, mem.New(), Options{}); !errors.Is(err, cause) {
		t.Errorf("Read: %v, want the cause", err)
	}
}

// synthetic is a reader with n pairs of 250 bytes in the bucket key, which are generated
// when they are read, so that a test does not measure the store.
type synthetic struct {
	n     int
	i     int
	value [250]byte
	visit func(i int)
}

func (s *synthetic) Get(dst, key []byte) ([]byte, error) { return nil, engine.ErrNotFound }

func (s *synthetic) NewIter(lower, upper []byte) (engine.Iterator, error) {
	it := *s
	if engine.Bucket(lower[0]) != engine.Key {
		it.n = 0
	}
	return &it, nil
}

func (s *synthetic) First() bool            { s.i = 0; return s.Valid() }
func (s *synthetic) Last() bool             { s.i = s.n - 1; return s.Valid() }
func (s *synthetic) SeekGE(key []byte) bool { panic("not used") }
func (s *synthetic) Prev() bool             { s.i--; return s.Valid() }
func (s *synthetic) Valid() bool            { return s.i >= 0 && s.i < s.n }
func (s *synthetic) Key() []byte            { return engine.Key.K(revKey(uint64(s.i), 0, false)) }
func (s *synthetic) Value() ([]byte, error) { return s.value[:], nil }
func (s *synthetic) Error() error           { return nil }
func (s *synthetic) Close() error           { return nil }

func (s *synthetic) Next() bool {
	s.i++
	if s.visit != nil {
		s.visit(s.i)
	}
	return s.Valid()
}

// drain is an engine that discards everything and counts it.
type drain struct {
	engine.Engine
	pairs, largest int
	visit          func(i int)
}

func (d *drain) NewIter(lower, upper []byte) (engine.Iterator, error) { return &synthetic{}, nil }
func (d *drain) NewBatch() engine.Batch                               { return &drainBatch{d: d} }
func (d *drain) Flush(context.Context) error                          { return nil }

type drainBatch struct {
	engine.Batch
	d      *drain
	n, len int
}

func (b *drainBatch) Set(key, value []byte) { b.n++; b.len += len(key) + len(value) }
func (b *drainBatch) Len() int              { return b.len }
func (b *drainBatch) Discard()              {}
func (b *drainBatch) Commit() error {
	b.d.pairs += b.n
	b.d.largest = max(b.d.largest, b.len)
	b.d.visit(b.d.pairs)
	return nil
}

// TestMemory: the codec's memory does not grow with the store.
func TestMemory(t *testing.T) {
	const keys = 200_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	base, peak := heap(), uint64(0)
	visit := func(i int) {
		if i%40_000 < 20 {
			peak = max(peak, heap())
		}
	}
	path, f := write(t, &synthetic{n: keys, visit: visit}, Options{})
	if want := int64(keys * 250); f.Size() < want || f.Size() > want*5/4 {
		t.Errorf("database of %d bytes, want little more than %d", f.Size(), want)
	}
	d := &drain{visit: visit}
	_, err := Read(ctx, path, d, Options{})
	must(t, err)
	if d.pairs != keys || d.largest > 5<<20 {
		t.Errorf("%d pairs in batches of up to %d bytes, want %d in 4 MiB", d.pairs, d.largest, keys)
	}
	if peak == 0 || peak > base+4<<20 {
		t.Errorf("heap grew from %d to %d bytes", base, peak)
	}
}

// FuzzReadDatabase feeds files to the reader. It must neither panic nor loop, and what it
// accepts must read back the same from a database that we write.
func FuzzReadDatabase(f *testing.F) {
	for _, keys := range []int{0, 3, 40} {
		eng := mem.New()
		batch := eng.NewBatch()
		batch.Set(engine.Meta.K([]byte("term")), make([]byte, 8))
		batch.Set(engine.Cluster.K([]byte("clusterVersion")), []byte("3.7.0"))
		for i := range keys {
			batch.Set(engine.Key.K(revKey(uint64(i), 0, false)), make([]byte, 100))
		}
		must(f, batch.Commit())
		var b bytes.Buffer
		fs := vfs.NewMem()
		if _, err := writeTo(ctx, &b, eng, Options{FS: fs, PageSize: 1024}); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), uint16(0), byte(0))
		f.Add(b.Bytes(), uint16(2100), byte(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, x byte) {
		if int(at) < len(b) {
			b = slices.Clone(b)
			b[at] ^= x
		}
		fs := vfs.NewMem()
		put(t, fs, "db", b)
		eng := mem.New()
		if _, err := Read(ctx, "db", eng, Options{FS: fs}); err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := writeTo(ctx, &out, eng, Options{FS: fs, PageSize: 1024}); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		put(t, fs, "again", out.Bytes())
		back := mem.New()
		if _, err := Read(ctx, "again", back, Options{FS: fs}); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		made := func(p string) bool { // follows the cluster version
			return strings.HasPrefix(p, fmt.Sprintf("%x=", engine.Meta.K([]byte(storageVersionKey))))
		}
		if !slices.Equal(slices.DeleteFunc(pairs(t, eng), made), slices.DeleteFunc(pairs(t, back), made)) {
			t.Fatal("pairs differ")
		}
	})
}

// BenchmarkMeasure measures 200,000 pairs of 250 bytes, and BenchmarkWrite writes them as well.
func BenchmarkMeasure(b *testing.B) {
	b.SetBytes(200_000 * 268)
	for b.Loop() {
		_, err := Measure(ctx, &synthetic{n: 200_000}, Options{})
		must(b, err)
	}
}

func BenchmarkWrite(b *testing.B) {
	b.SetBytes(200_000 * 268)
	for b.Loop() {
		_, err := writeTo(ctx, io.Discard, &synthetic{n: 200_000}, Options{})
		must(b, err)
	}
}

// The tree of the v2 API in the file is valid as long as the file has the applied index that it
// was written with: etcd does not know the bucket and leaves it unchanged.
func TestV2Bucket(t *testing.T) {
	fs := vfs.NewMem()
	record := engine.V2.K([]byte("i"))
	write := func(path string, index ids.Index, o Options) {
		t.Helper()
		eng := mem.New()
		defer eng.Close()
		b := eng.NewBatch()
		b.Set(engine.Meta.K([]byte("consistent_index")), binary.BigEndian.AppendUint64(nil, uint64(index)))
		b.Set(record, []byte("tree"))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		o.FS = fs
		if _, err := Export(context.Background(), eng, path, o); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		eng := mem.New()
		defer eng.Close()
		if _, err := Read(context.Background(), path, eng, Options{FS: fs}); err != nil {
			t.Fatal(err)
		}
		v, err := eng.Get(nil, record)
		if err != nil {
			return err.Error()
		}
		return string(v)
	}
	write("with", 7, Options{})
	if got := read("with"); got != "tree" {
		t.Errorf("got %q", got)
	}
	write("without", 7, Options{WithoutV2: true})
	if got := read("without"); got != engine.ErrNotFound.Error() {
		t.Errorf("of a file without: %q", got)
	}
	// As if etcd had applied more: raise the index, in the one place of the bucket meta.
	b := readAll(t, fs, "with")
	at := bytes.Index(b, append([]byte("consistent_index"), binary.BigEndian.AppendUint64(nil, 7)...))
	if at < 0 {
		t.Fatal("no index in the file")
	}
	b[at+len("consistent_index")+7] = 8
	f, err := fs.Create("later", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if got := read("later"); got != engine.ErrNotFound.Error() {
		t.Errorf("of a file that has gone on without the tree: %q", got)
	}
}

func readAll(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// walk reads every pair of a database.
func walk(path string, o Options) error {
	r, err := openDB(ctx, path, o.withDefaults())
	if err != nil {
		return err
	}
	defer r.f.Close()
	var m Meta
	return r.known(func(b engine.Bucket, key, value []byte) error {
		if err := m.add(b, key, value); err != nil {
			return &CorruptError{File: path, Err: err}
		}
		return nil
	})
}

// writeTo writes what r reads as a database to w.
func writeTo(ctx context.Context, w io.Writer, r engine.Reader, o Options) (int64, error) {
	i, err := Measure(ctx, r, o)
	if err != nil {
		return 0, err
	}
	return i.Size(), i.WriteTo(ctx, w)
}
