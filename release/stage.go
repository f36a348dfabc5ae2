package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// assets are the files that are installed as they are.
//
//go:embed files
var assets embed.FS

// stage holds the parts from which the files of one architecture are assembled. Every part of it is a file on
// disk, because the packaging tools expect that.
type stage struct {
	source
	arch string
	dir  string // holds the parts
}

func newStage(ctx context.Context, src source, arch, dir string) (*stage, error) {
	s := &stage{source: src, arch: arch, dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	if err := buildBinaries(ctx, src, arch, filepath.Join(dir, "bin")); err != nil {
		return nil, err
	}
	for _, p := range programs {
		if err := os.Chmod(s.program(p), 0o755); err != nil {
			return nil, err
		}
	}
	for _, write := range []func() error{s.writeAssets, s.writeConfig, s.writeManPages, s.writeCompletions, func() error { return s.writeLicenses(ctx) }} {
		if err := write(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// program is the path of a program's binary.
func (s *stage) program(name string) string { return filepath.Join(s.dir, "bin", name) }

// part is the path of the part that was added under this name.
func (s *stage) part(name string) string {
	return filepath.Join(s.dir, "parts", filepath.FromSlash(name))
}

// add creates a part.
func (s *stage) add(name string, data []byte) error {
	file := s.part(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

func (s *stage) writeAssets() error {
	return fs.WalkDir(assets, "files", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := assets.ReadFile(p)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel("files", p)
		return s.add(filepath.ToSlash(name), data)
	})
}

// writeConfig derives etcd.conf.yml from the sample: it differs only in the data directory of a package's
// member.
func (s *stage) writeConfig() error {
	sample, err := os.ReadFile(filepath.Join(s.root, "etcd.conf.yml.sample"))
	if err != nil {
		return err
	}
	for _, r := range [][2]string{
		{"# A configuration file for one member, used with `etcd --config-file etcd.conf.yml.sample`.\n",
			"# The configuration file of this member. It is used when /etc/default/etcd (of RPM packages:\n" +
				"# /etc/etcd/etcd.conf) has the line ETCD_CONFIG_FILE=/etc/etcd/etcd.conf.yml.\n"},
		{"\ndata-dir: default.etcd\n", "\ndata-dir: " + dataDir + "\n"},
	} {
		if bytes.Count(sample, []byte(r[0])) != 1 {
			return fmt.Errorf("etcd.conf.yml.sample has not one %q; change the release tool with it", r[0])
		}
		sample = bytes.Replace(sample, []byte(r[0]), []byte(r[1]), 1)
	}
	return s.add("etcd.conf.yml", sample)
}

// dataDir is the data directory of a package's member: the same as Debian's.
const dataDir = "/var/lib/etcd/default"

// fromRoot is a file of the repository.
func (s *stage) fromRoot(name string) string { return filepath.Join(s.root, filepath.FromSlash(name)) }

// item is a file that is installed.
type item struct {
	from   string // on disk
	to     string // absolute, or below the directory of the archive
	mode   fs.FileMode
	config bool // owned by the administrator once it is installed
}

func at(dir string, mode fs.FileMode, from ...string) []item {
	var out []item
	for _, f := range from {
		out = append(out, item{from: f, to: path.Join(dir, filepath.Base(f)), mode: mode})
	}
	return out
}
