package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A scrub of a running member finds a changed byte in its store and in its log, and shows the
// files in its status until a later scrub finds them intact. It raises no alarm.
func TestScrub(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	for range 50 {
		n.put("key", strings.Repeat("value", 100))
	}
	if err := n.m.replica.mach().Engine().Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	lines := func() string {
		t.Helper()
		if err := n.m.scrubber.scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := n.m.Maintenance.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Errors, "\n")
	}
	if got := lines(); got != "" {
		t.Fatalf("an intact member has the errors %s", got)
	}
	// flip changes a byte of a file, or changes it back. It reports whether the file has that byte.
	flip := func(path string) bool {
		f, err := n.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return false
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], 500); err != nil {
			return false // it is being removed
		}
		b[0] ^= 4
		if _, err := f.WriteAt(b[:], 500); err != nil {
			t.Fatal(err)
		}
		return true
	}
	for _, suffix := range []string{".sst", ".wal"} {
		path := ""
		// A compaction may replace a table before it is scrubbed: then another one is damaged.
		eventually(t, "the status names the damaged "+suffix, func() bool {
			path = largest(t, n.fs, suffix)
			if !flip(path) {
				return false
			}
			if got := lines(); strings.Contains(got, "damaged file: "+path+" at offset ") {
				return true
			}
			flip(path)
			return false
		})
		if !flip(path) {
			t.Fatalf("%s has vanished", path)
		}
		if got := lines(); got != "" {
			t.Errorf("%s is intact again: the status says %q", path, got)
		}
	}
	if a := n.m.Maintenance.Alarms(); len(a) > 0 {
		t.Errorf("alarms %v", a)
	}
}

// largest returns the largest file of a store and a log with a suffix.
func largest(t *testing.T, fs vfs.FS, suffix string) (path string) {
	t.Helper()
	size := int64(-1)
	for _, dir := range []string{"data/member/store", "data/member/wal"} {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f := fs.PathJoin(dir, name)
			if st, err := fs.Stat(f); err == nil && strings.HasSuffix(f, suffix) && st.Size() > size {
				path, size = f, st.Size()
			}
		}
	}
	return path
}

// A scrub is due one interval after the last one, also after a restart.
func TestScrubIsRemembered(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.put("key", "value")
	s := n.m.scrubber
	now := time.Unix(1_700_000_000, 0)
	if got := s.remembered(now); !got.Equal(now) {
		t.Errorf("a member that was never scrubbed counts from %v, want now", got)
	}
	if got := s.remembered(now.Add(time.Hour)); !got.Equal(now) {
		t.Errorf("after an hour: %v, want %v", got, now)
	}
	if got, before := s.remembered(now.Add(-time.Hour)), now.Add(-time.Hour); !got.Equal(before) {
		t.Errorf("a clock that was set back: %v, want %v", got, before)
	}
}

// Only a damaged store can be fetched from other members: the advice depends on the file.
func TestRemedy(t *testing.T) {
	for file, want := range map[string]bool{
		"/data/member/store/000012.sst":                true,
		"/data/member/wal/0000000000000000-000001.wal": false,
		"/data/member/store-2/000012.sst":              false,
		"/data/member/STORE":                           false,
	} {
		if got := strings.Contains(remedy(within("/data/member/store", file)), "member rebuild"); got != want {
			t.Errorf("%s: the advice names member rebuild: %v, want %v", file, got, want)
		}
	}
}
