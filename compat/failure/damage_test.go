package failure

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// keys is the number of keys that a member holds before it is damaged.
const keys = 400

func keyOf(i int) string { return fmt.Sprintf("key-%04d", i) }

// valueOf is text that does not compress, long enough that records span sectors and the store spans many blocks.
func valueOf(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 7))
	b := make([]byte, 1500)
	for i := range b {
		b[i] = byte(r.UintN(256))
	}
	return string(b)
}

// inhabit fills the data directory of s: a member writes every key and exits. A member that is killed has its
// writes in the log alone; one that stops has flushed its store.
func (s *site) inhabit(t *testing.T, kill bool, more ...string) {
	t.Helper()
	p, c := s.serve(t, more...)
	for i := range keys {
		if _, err := c.PutWithin(limit, keyOf(i), valueOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if kill {
		p.Kill()
		return
	}
	p.Signal(syscall.SIGTERM)
	p.Wait(t, limit)
}

// complete checks that every key has its value.
func complete(t *testing.T, c *child.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("key-"), RangeEnd: []byte("key.")})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) != keys {
		t.Errorf("%d keys, want %d", len(r.Kvs), keys)
	}
	for i, kv := range r.Kvs {
		if string(kv.Key) != keyOf(i) || string(kv.Value) != valueOf(i) {
			t.Fatalf("key %d is %s with another value than was written", i, kv.Key)
		}
	}
}

// refuses checks that a start on s fails with code 1 and one reason that contains all of want.
func (s *site) refuses(t *testing.T, args []string, want ...string) {
	t.Helper()
	refusal{args: flags(args...), code: 1, want: words(want...), real: unasked}.at(t, s)
}

func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %d files, want 1 (%v)", pattern, len(found), err)
	}
	return found[0]
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 0x40
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// frames returns the offsets of a log file's records, and the end of the last one. Each begins with eight bytes,
// little endian: its length in the low bytes, and in the top byte 0x80 + padding.
func frames(t *testing.T, path string) (offsets []int64, end int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for end+8 <= int64(len(b)) {
		head := binary.LittleEndian.Uint64(b[end:])
		if head == 0 {
			break
		}
		size, pad := int64(head&(1<<56-1)), int64(head>>56)&7
		offsets = append(offsets, end)
		end += 8 + size + pad
	}
	return offsets, end
}

func TestDamagedLog(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{true, false} {
		s := newSite(t)
		s.inhabit(t, kill)
		wal := only(t, filepath.Join(s.data, "member/wal/*.wal"))
		offsets, end := frames(t, wal)
		if len(offsets) < keys {
			t.Fatalf("the log has %d records, want at least %d", len(offsets), keys)
		}
		// In each record in turn: a byte of its length, its type, its checksum, its data.
		for i, where := range []int64{0, 8, 11, 200, 1000} {
			n := len(offsets) * (i + 1) / 8
			name := fmt.Sprintf("stopped by kill %v, byte %d of record %d", kill, where, n)
			t.Run(name, func(t *testing.T) {
				off := offsets[n]
				for offsets[n+1]-off < 1200 { // a record of a put
					n++
					off = offsets[n]
				}
				flip(t, wal, off+where)
				defer flip(t, wal, off+where)
				s.refuses(t, nil, wal, fmt.Sprintf("offset %d", off), "remove this member from its cluster and add it again")
			})
		}
		t.Run(fmt.Sprintf("stopped by kill %v, last write cut short", kill), func(t *testing.T) {
			b, err := os.ReadFile(wal)
			if err != nil {
				t.Fatal(err)
			}
			// As after a power loss: only the first sectors of the next record have arrived.
			var big int64
			for i := 1; big == 0; i++ {
				if offsets[i+1]-offsets[i] > 1500 {
					big = offsets[i]
				}
			}
			copy(b[end:end+700], b[big:])
			if err := os.WriteFile(wal, b, 0o600); err != nil {
				t.Fatal(err)
			}
			p, c := s.serve(t)
			complete(t, c)
			broken, err := os.ReadFile(wal + ".broken")
			if err != nil || !bytes.Equal(broken[end:end+100], b[end:end+100]) {
				t.Errorf("the original file is not kept next to the log: %v", err)
			}
			if !strings.Contains(p.Output(), fmt.Sprintf(`"offset":%d`, end)) {
				t.Errorf("no log line names the offset %d of the repair", end)
			}
			p.Kill()
			_, c = s.serve(t)
			complete(t, c)
		})
	}
}

// A store with a flipped bit must either not start or return an error for reads that hit it. It must never
// return other data.
func TestDamagedStore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.inhabit(t, false)
	tables, err := filepath.Glob(filepath.Join(s.data, "member/store/*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("the store has no tables: %v", err)
	}
	slices.SortFunc(tables, func(a, b string) int { return int(size(t, b) - size(t, a)) })
	table := tables[0]
	n := size(t, table)
	var refused, failed, harmless int
	for _, off := range []int64{100, n / 7, n / 3, n / 2, n * 3 / 4, n - 3000, n - 300, n - 30} {
		t.Run(fmt.Sprintf("byte %d of %d", off, n), func(t *testing.T) {
			flip(t, table, off)
			defer flip(t, table, off)
			before := child.Look(t, s.data)
			p := s.start(t, etcd)
			c := child.Dial(t, s.client)
			var answer error
			child.Eventually(t, limit, "the member answers or ends", func() error {
				if !p.Running() {
					return nil
				}
				_, _, err := c.GetWithin(2*time.Second, "any")
				return err
			})
			if p.Running() {
				for i := range keys {
					v, found, err := c.GetWithin(5*time.Second, keyOf(i))
					if err != nil {
						answer = errors.Join(answer, err)
						break
					}
					if !found || v != valueOf(i) {
						t.Fatalf("%s is answered with other data than was written (found %v)", keyOf(i), found)
					}
				}
				if answer == nil {
					harmless++
					p.Kill()
					return
				}
				failed++
				t.Logf("reads fail: %v", answer)
			} else {
				refused++
				if code := p.Code(); code != 1 {
					t.Errorf("exit code %d, want 1", code)
				}
				// Opening a store begins a new manifest, and a compaction that runs into the damage may leave a
				// table that nothing refers to. What was there must stay.
				held, now := before.Only(".sst", ".wal"), child.Look(t, s.data)
				maps.DeleteFunc(now, func(path, _ string) bool { return held[path] == "" })
				if diff := held.Changed(now); diff != "" {
					t.Errorf("tables or the log have changed:\n%s", diff)
				}
			}
			p.Kill()
			reasons := child.Reasons(p.Output())
			for _, r := range reasons {
				if !strings.Contains(r, table) {
					t.Errorf("a line does not name %s: %s", table, r)
				}
			}
			if refused > 0 && len(reasons) > 0 && !strings.Contains(reasons[len(reasons)-1], "corrupt data in "+table) {
				t.Errorf("the last line does not say that %s is corrupt: %s", table, reasons[len(reasons)-1])
			}
			if len(reasons) == 0 {
				t.Error("no line gives a reason")
			}
		})
	}
	t.Logf("%d starts refused, %d with failing reads, %d not concerned", refused, failed, harmless)
	if refused+failed < 4 {
		t.Errorf("only %d of the flipped bits were found", refused+failed)
	}
	_, c := s.serve(t)
	complete(t, c)
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// Directories that do not belong together.
func TestMixedDirectories(t *testing.T) {
	t.Parallel()
	a, b := newSite(t), newSite(t)
	// Few entries stay in the log, so it is not sufficient without the store.
	few := []string{"--snapshot-count=100", "--snapshot-catchup-entries=10"}
	a.inhabit(t, false, few...)
	b.inhabit(t, false)
	wal := func(s *site) string { return filepath.Join(s.data, "member/wal") }
	store := func(s *site) string { return filepath.Join(s.data, "member/store") }

	t.Run("log of another member", func(t *testing.T) {
		before := child.Look(t, b.data)
		a.refuses(t, []string{"--wal-dir=" + wal(b)}, "--data-dir", a.data, "--wal-dir", wal(b), "do not belong together")
		if diff := before.Changed(child.Look(t, b.data)); diff != "" {
			t.Errorf("the other member's directory has changed:\n%s", diff)
		}
	})
	t.Run("store without log", func(t *testing.T) {
		rename(t, wal(a), wal(a)+"-away")
		defer rename(t, wal(a)+"-away", wal(a))
		a.refuses(t, nil, store(a), wal(a), "has no raft log")
	})
	t.Run("empty wal-dir", func(t *testing.T) {
		empty := t.TempDir()
		a.refuses(t, []string{"--wal-dir=" + empty}, store(a), empty, "has no raft log")
		if diff := (child.Contents{".": "drwxr-xr-x"}).Changed(child.Look(t, empty)); diff != "" {
			t.Errorf("the directory has changed:\n%s", diff)
		}
	})
	t.Run("log without the store that it needs", func(t *testing.T) {
		rename(t, store(a), store(a)+"-away")
		defer rename(t, store(a)+"-away", store(a))
		a.refuses(t, few, store(a), wal(a), "no store")
	})
	t.Run("data-dir empty, log elsewhere", func(t *testing.T) {
		empty := newSite(t)
		empty.refuses(t, append(few, "--wal-dir="+wal(a)), empty.data, wal(a), "no store")
	})
	t.Run("all is well again", func(t *testing.T) {
		_, c := a.serve(t)
		complete(t, c)
	})
	t.Run("whole log without store", func(t *testing.T) {
		if err := os.RemoveAll(store(b)); err != nil {
			t.Fatal(err)
		}
		_, c := b.serve(t)
		complete(t, c)
	})
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// A second process on the directory of a running member waits and changes nothing; the first does not notice it.
// TestRollingRestart checks what follows.
func TestDirectoryInUse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, c := s.serve(t)
	if _, err := c.PutWithin(limit, "k", "v"); err != nil {
		t.Fatal(err)
	}
	second := newSite(t)
	second.data = s.data
	p.Signal(syscall.SIGSTOP) // so that only the second can change anything
	before := child.Look(t, s.data)
	waiting := second.start(t, etcd)
	says(t, waiting, "another process uses the data directory; waiting until it ends")
	waiting.Signal(syscall.SIGTERM)
	if code := waiting.Wait(t, limit); code != 128+int(syscall.SIGTERM) {
		t.Errorf("a signal ends the one that waits with %d", code)
	}
	if diff := before.Changed(child.Look(t, s.data)); diff != "" {
		t.Errorf("the data directory has changed:\n%s", diff)
	}
	p.Signal(syscall.SIGCONT)
	if v, _, err := c.GetWithin(limit, "k"); err != nil || v != "v" {
		t.Errorf("the running member answers %q, %v", v, err)
	}
}

// A file in place of the store that is not an etcd database is refused and left alone. The lane moving covers
// directories that are.
func TestDamagedStoreOfEtcd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	db := filepath.Join(s.data, "member/snap/db")
	for _, d := range []string{filepath.Dir(db), filepath.Join(s.data, "member/wal")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, db, "a bbolt file")
	s.refuses(t, nil, "nothing has been changed", db)
}
