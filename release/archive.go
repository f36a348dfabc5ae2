package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// writeArchive writes the tar.gz: the programs at the top, as in etcd's archives, and next to them what the
// packages install.
func writeArchive(s *stage, out string) error {
	var items []item
	for _, p := range programs {
		items = append(items, item{from: s.program(p), to: p, mode: 0o755})
	}
	items = append(items, at("", 0o644, s.fromRoot("README.md"), s.fromRoot("README.zh-CN.md"), s.fromRoot("LICENSE"), s.fromRoot("etcd.conf.yml.sample"))...)
	items = append(items, at("docs", 0o644, s.fromRoot("docs/differences.md"), s.fromRoot("docs/migrating-from-etcd.md"))...)
	items = append(items, at("systemd", 0o644, s.part("etcd.service"))...)
	items = append(items,
		item{from: s.part("sysusers.conf"), to: "systemd/sysusers.d/etcd.conf", mode: 0o644},
		item{from: s.part("tmpfiles.conf"), to: "systemd/tmpfiles.d/etcd.conf", mode: 0o644},
		item{from: s.part("default"), to: "systemd/default/etcd", mode: 0o644},
		item{from: s.part("etcd.conf.yml"), to: "systemd/etcd.conf.yml", mode: 0o644})
	items = append(items, at("", 0o644, s.part(licensesFile))...)
	for _, p := range programs {
		items = append(items, at("man/man1", 0o644, s.part("man/"+p+".1"))...)
		items = append(items, at("completions", 0o644, s.part("completions/"+p), s.part("completions/_"+p), s.part("completions/"+p+".fish"))...)
	}
	name := s.name(s.arch)
	return writeFile(filepath.Join(out, name+".tar.gz"), func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
		if err != nil {
			return err
		}
		if err := writeTar(z, name, items, s.date); err != nil {
			return err
		}
		return z.Close()
	})
}

// writeTar writes items below dir, with the directories they need: sorted, owned by root, with one time stamp.
func writeTar(w io.Writer, dir string, items []item, date time.Time) error {
	items = slices.SortedFunc(slices.Values(items), func(a, b item) int { return strings.Compare(a.to, b.to) })
	t := tar.NewWriter(w)
	seen := map[string]bool{".": true, "/": true}
	var mkdir func(name string) error
	mkdir = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		if err := mkdir(path.Dir(name)); err != nil {
			return err
		}
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: date, Format: tar.FormatUSTAR})
	}
	for _, i := range items {
		name := strings.TrimPrefix(path.Join(dir, i.to), "/")
		if err := mkdir(path.Dir(name)); err != nil {
			return err
		}
		if err := addFile(t, name, i, date); err != nil {
			return err
		}
	}
	return t.Close()
}

func addFile(t *tar.Writer, name string, i item, date time.Time) error {
	f, err := os.Open(i.from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: int64(i.mode & fs.ModePerm), ModTime: date, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// writeFile creates a file and has write fill it.
func writeFile(name string, write func(w io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	return f.Close()
}
