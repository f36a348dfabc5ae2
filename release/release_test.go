package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// anySource is a synthetic commit of the files in root, so that a test can change files.
func anySource(root string) source {
	return source{root: root, version: "9.8.7-rc.1", commit: "0123456789abcdef0123456789abcdef01234567", date: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)}
}

var bothArchs = []string{"amd64", "arm64"}

// made is a release that several tests share; the first that needs it builds it.
var made struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.dir != "" {
		os.RemoveAll(filepath.Dir(made.dir))
	}
	os.Exit(code)
}

func madeRelease(t *testing.T) string {
	t.Helper()
	made.once.Do(func() {
		dir, err := os.MkdirTemp("", "release")
		if err != nil {
			made.err = err
			return
		}
		made.dir = filepath.Join(dir, "dist")
		made.err = makeRelease(context.Background(), anySource(copyOfRepository(t, repository(t))), bothArchs, made.dir)
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	return made.dir
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// copyOfRepository copies what git would commit, as it is now, into a directory of the test, with different
// times and modes.
func copyOfRepository(t *testing.T, root string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "a directory with another name")
	list, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) { // removed, not committed yet
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// A release is identical to the byte from another directory, with other modes of files, under another umask, in
// another time zone and with another environment for go.
func TestTheSameBytesTwice(t *testing.T) {
	first, second := madeRelease(t), filepath.Join(t.TempDir(), "second")
	defer func(l *time.Location) { time.Local = l }(time.Local)
	time.Local = time.FixedZone("elsewhere", 5*3600)
	t.Setenv("TZ", "Asia/Shanghai")
	t.Setenv("LC_ALL", "zh_CN.UTF-8")
	t.Setenv("GOFLAGS", "-tags=elsewhere")
	t.Setenv("GOAMD64", "v3")
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	defer syscall.Umask(syscall.Umask(0o077))
	if err := makeRelease(context.Background(), anySource(copyOfRepository(t, repository(t))), bothArchs, second); err != nil {
		t.Fatal(err)
	}

	a, b := sums(t, first), sums(t, second)
	if len(a) < 6*len(bothArchs) {
		t.Errorf("there are only %d files", len(a))
	}
	for name, sum := range a {
		if b[name] != sum {
			t.Errorf("%s: %s and %s", name, sum, b[name])
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d files and %d", len(a), len(b))
	}
	checkContents(t, first)
}

// sums reads SHA256SUMS and verifies it.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		sum, name, ok := strings.Cut(line, "  ")
		if !ok {
			t.Fatalf("%s has the line %q", sumsFile, line)
		}
		got, err := sumOf(filepath.Join(dir, name))
		if err != nil || fmt.Sprintf("%x", got) != sum {
			t.Errorf("%s: %x, %v, but %s says %s", name, got, err, sumsFile, sum)
		}
		out[name] = sum
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(out)+1 {
		t.Errorf("%d files, and sums of %d", len(entries), len(out))
	}
	return out
}

func TestVersions(t *testing.T) {
	date := time.Date(2026, 11, 28, 18, 28, 23, 0, time.UTC)
	const commit = "20c683f3a3ae3830d97896b1743b574b8bb1df5d"
	for _, tt := range []struct {
		asked, tags string
		dirty       bool
		version     string
		packaged    string
	}{
		{tags: "v1.2.3", version: "1.2.3", packaged: "3.7.3+quorate1.2.3"},
		{tags: "v1.2.3-rc.1", version: "1.2.3-rc.1", packaged: "3.7.3+quorate1.2.3~rc.1"},
		{tags: "verified v1.2.3", version: "1.2.3", packaged: "3.7.3+quorate1.2.3"},
		{tags: "v1.2.3", dirty: true, version: "1.2.3-dirty", packaged: "3.7.3+quorate1.2.3~dirty"},
		{asked: "4.5.6", tags: "v1.2.3", version: "4.5.6", packaged: "3.7.3+quorate4.5.6"},
		{version: "0.1.0-dev.20261128182823.20c683f3a", packaged: "3.7.3+quorate0.1.0~dev.20261128182823.20c683f3a"},
		{asked: "1.2"},
		{asked: "1.2.3+x"},
		{asked: "1.2.3 -X evil"},
	} {
		v, err := versionOf(tt.asked, strings.Fields(tt.tags), commit, date, tt.dirty)
		if v != tt.version || (err == nil) != (tt.version != "") {
			t.Errorf("%+v: %q, %v", tt, v, err)
		}
		if p := (source{version: v}).packaged(); err == nil && p != tt.packaged {
			t.Errorf("%+v: the packages have %q", tt, p)
		}
	}
}

// A directory that is not a release is not removed for one.
func TestOnlyAReleaseIsReplaced(t *testing.T) {
	dir := t.TempDir()
	made, old := filepath.Join(dir, "made"), filepath.Join(dir, "old")
	for name, data := range map[string]string{"made/" + sumsFile: "new", "old/precious": "x"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := replace(made, old); err == nil {
		t.Error("a directory of something else is replaced")
	}
	if err := os.Rename(filepath.Join(old, "precious"), filepath.Join(old, sumsFile)); err != nil {
		t.Fatal(err)
	}
	if err := replace(made, old); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(filepath.Join(old, sumsFile)); !bytes.Equal(data, []byte("new")) {
		t.Errorf("it holds %q", data)
	}
}
