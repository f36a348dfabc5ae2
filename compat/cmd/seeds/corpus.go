package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// corpus writes the seeds below the root of the repository.
type corpus struct {
	root string
	has  map[string]int // seeds by package, target and kind
	errs error
}

const (
	ofEachKind = 1       // seeds that are kept of one kind
	maxSeed    = 4 << 10 // bytes of one value; databases are larger
	maxFile    = 200 << 10
	mark       = "etcd-" // begins the names of recorded seeds
)

// clear removes what an earlier recording has written.
func (c *corpus) clear() error {
	old, err := filepath.Glob(filepath.Join(c.root, "internal", "*", "testdata", "fuzz", "*", mark+"*"))
	deeper, err2 := filepath.Glob(filepath.Join(c.root, "internal", "*", "*", "testdata", "fuzz", "*", mark+"*"))
	for _, f := range append(old, deeper...) {
		err = errors.Join(err, os.Remove(f))
	}
	return errors.Join(err, err2)
}

// add keeps the values for a fuzz target of a package, unless there are enough of the kind.
func (c *corpus) add(pkg, target, kind string, values ...any) {
	kind = strings.ToLower(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '.' {
			return r
		}
		return '-'
	}, kind))
	key := pkg + " " + target + " " + kind
	if c.has[key] >= ofEachKind {
		return
	}
	text := "go test fuzz v1\n"
	for _, v := range values {
		switch v := v.(type) {
		case []byte:
			text += "[]byte(" + strconv.Quote(string(v)) + ")\n"
		case string:
			text += "string(" + strconv.Quote(v) + ")\n"
		case byte:
			text += fmt.Sprintf("byte('\\x%02x')\n", v)
		default: // int32, int64, uint16, uint32, uint64, bool
			text += fmt.Sprintf("%T(%v)\n", v, v)
		}
	}
	if len(text) > maxFile {
		return
	}
	c.has[key]++
	dir := filepath.Join(c.root, "internal", pkg, "testdata", "fuzz", target)
	name := filepath.Join(dir, fmt.Sprintf("%s%s-%d", mark, kind, c.has[key]))
	c.errs = errors.Join(c.errs, os.MkdirAll(dir, 0o755), os.WriteFile(name, []byte(text), 0o644))
}

// first returns the beginning of b, as much as a seed may have.
func first(b []byte) []byte { return b[:min(len(b), maxSeed)] }
