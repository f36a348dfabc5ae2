package boltdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"quorate/internal/membership"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pairs returns everything in a database.
func pairs(t *testing.T, path string) map[string]string {
	t.Helper()
	d, err := Open(path, time.Second)
	must(t, err)
	defer d.Close()
	out := map[string]string{}
	must(t, d.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				out[string(name)+"/"+string(k)] = string(v)
				return nil
			})
		})
	}))
	return out
}

func TestInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	d, err := Create(path)
	must(t, err)
	must(t, d.SetPosition(7, 3))
	if v, term, err := d.StorageVersion(); v != "" || term != 3 || err != nil {
		t.Errorf("storage version %q, term %d, %v", v, term, err)
	}
	must(t, d.SetStorageVersion("3.6.0"))
	must(t, d.ReplaceMembers([]membership.Member{{ID: 0xab, Name: "old"}}))
	must(t, d.update(func(tx *bolt.Tx) error { return tx.Bucket(cluster).Put([]byte("clusterVersion"), []byte("3.6.0")) }))
	must(t, d.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("key"))
		for i := 0; i < 3000 && err == nil; i++ {
			err = b.Put(fmt.Appendf(nil, "%08d", i), make([]byte, 1000))
		}
		return err
	}))
	must(t, d.update(func(tx *bolt.Tx) error {
		for i := range 2900 {
			if err := tx.Bucket([]byte("key")).Delete(fmt.Appendf(nil, "%08d", i)); err != nil {
				return err
			}
		}
		return nil
	}))
	if _, err := Open(path, 10*time.Millisecond); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := Create(path); err == nil {
		t.Error("created twice")
	}
	must(t, d.ReplaceMembers([]membership.Member{{ID: 0xcd, Name: "new"}}))
	must(t, d.Close())

	all := pairs(t, path)
	if all["meta/storageVersion"] != "3.6.0" || all["members/ab"] != "" || all["members/cd"] == "" || all["cluster/clusterVersion"] != "" || len(all) != 104 {
		t.Errorf("%d pairs: %q", len(all), all["members/cd"])
	}
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, Copy(path, copied, time.Second))
	before, after, err := Defrag(path, time.Second, func(Sizes) {})
	must(t, err)
	st, err := os.Stat(path)
	must(t, err)
	if before.Total < 3_000_000 || after.Total > 300_000 || after.Total > st.Size() || after.InUse > after.Total {
		t.Errorf("defragmented from %+v to %+v, the file has %d bytes", before, after, st.Size())
	}
	for _, p := range []string{path, copied} {
		if got := pairs(t, p); fmt.Sprint(got) != fmt.Sprint(all) {
			t.Errorf("%s has %d pairs, want %d", p, len(got), len(all))
		}
	}
	names, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

// Damaged files, and files that are not databases, are errors.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), time.Second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	path := filepath.Join(dir, "db")
	d, err := Create(path)
	must(t, err)
	must(t, d.SetPosition(7, 3))
	must(t, d.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	for at := 0; at < len(whole); at += 4096 {
		b := append([]byte(nil), whole...)
		for i := at; i < at+64; i++ {
			b[i] ^= 0x5a
		}
		must(t, os.WriteFile(path, b, 0o600))
		if _, _, err := Defrag(path, time.Second, func(Sizes) {}); err != nil {
			t.Logf("damaged at %d: %v", at, err)
		}
	}
}
