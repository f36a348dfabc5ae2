package utl

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/mvcc"
	"quorate/internal/snapshot"
)

// savedFile writes what 'etcdctl snapshot save' writes: a database, followed by its SHA-256.
func savedFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	eng, rng := mem.New(), rand.New(rand.NewPCG(8, 8))
	b := eng.NewBatch()
	for i := range 400 {
		value := make([]byte, rng.IntN(300))
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		rev := ids.Revision(i + 2)
		kv, err := proto.Marshal(&mvccpb.KeyValue{Key: fmt.Appendf(nil, "k%d", i), CreateRevision: int64(rev), ModRevision: int64(rev), Version: 1, Value: value})
		if err != nil {
			t.Fatal(err)
		}
		b.Set(engine.Key.K(mvcc.AppendRevision(nil, mvcc.Revision{Main: rev}, false)), kv)
	}
	apply.SetPosition(b, 20, 2)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "backup.db")
	if _, err := snapshot.Export(context.Background(), eng, path, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	content = append(content, sum[:]...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// Whichever bit of a saved snapshot flips, and wherever it is cut off, it is not restored,
// and nothing is left of the attempt.
func TestFlipsInSavedSnapshot(t *testing.T) {
	path, content := savedFile(t)
	if err := checkHash(path, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(6, 6))
	for i := range 4000 {
		at, x := rng.Int64N(int64(len(content))), byte(1)<<rng.IntN(8)
		if _, err := f.WriteAt([]byte{content[at] ^ x}, at); err != nil {
			t.Fatal(err)
		}
		if err := checkHash(path, false); err == nil || !strings.Contains(err.Error(), "expected sha256") {
			t.Fatalf("byte %d of %d changed by %#x: %v", at, len(content), x, err)
		}
		if i%200 == 0 {
			dir := filepath.Join(t.TempDir(), "data")
			if _, stderr, code := run("snapshot", "restore", path, "--data-dir", dir); code == 0 || !strings.Contains(stderr, path) {
				t.Fatalf("byte %d of %d changed by %#x: restored, or not named: %d %s", at, len(content), x, code, stderr)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Fatalf("a refused restore leaves %s: %v", dir, err)
			}
		}
		if _, err := f.WriteAt(content[at:at+1], at); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		if err := os.WriteFile(path, content[:rng.IntN(len(content))], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkHash(path, false); err == nil {
			t.Fatal("a part of a snapshot is accepted")
		}
	}
}

// Without the checksum, as for a file from a data directory, damage cannot always be seen,
// but what cannot be read is refused with the name of the file.
func TestFlipsWithoutChecksum(t *testing.T) {
	path, content := savedFile(t)
	content = content[:len(content)-sha256.Size]
	rng := rand.New(rand.NewPCG(7, 7))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Read(t.Context(), path, mem.New(), snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 1500 {
		at, x := rng.IntN(len(content)), byte(1)<<rng.IntN(8)
		content[at] ^= x
		err := os.WriteFile(path, content, 0o600)
		content[at] ^= x
		if err != nil {
			t.Fatal(err)
		}
		eng := mem.New()
		if _, err := snapshot.Read(t.Context(), path, eng, snapshot.Options{}); err == nil {
			continue
		} else if !strings.Contains(err.Error(), path) {
			t.Fatalf("byte %d changed by %#x: the error does not name the file: %v", at, x, err)
		}
		refused++
	}
	t.Logf("%d of 1500 were refused", refused)
	if refused == 0 {
		t.Error("no damage of the structure was seen")
	}
}
