package child

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Contents is what a directory holds: for each path below it the mode and, for a file, size and checksum. A
// missing directory has no contents.
type Contents map[string]string

// Look reads the contents of dir.
func Look(t testing.TB, dir string) Contents {
	t.Helper()
	c := Contents{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		if info.Mode().IsRegular() {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			n, err := io.Copy(h, f)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d bytes %x", n, h.Sum(nil)[:8])
		}
		c[rel] = text
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read directory %s: %v", dir, err)
	}
	return c
}

// Only returns the entries whose paths have one of the given suffixes.
func (c Contents) Only(endings ...string) Contents {
	part := Contents{}
	for path, text := range c {
		if slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(path, e) }) {
			part[path] = text
		}
	}
	return part
}

// Changed lists the differences between two states of a directory, one per line.
func (c Contents) Changed(now Contents) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(c)) {
		if got, ok := now[path]; !ok {
			fmt.Fprintf(&b, "  gone: %s (%s)\n", path, c[path])
		} else if got != c[path] {
			fmt.Fprintf(&b, "  changed: %s: %s, was %s\n", path, got, c[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(now)) {
		if _, ok := c[path]; !ok {
			fmt.Fprintf(&b, "  new: %s (%s)\n", path, now[path])
		}
	}
	return b.String()
}
