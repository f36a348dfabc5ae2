package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// checkContents checks the result: the archive is complete, and its programs are stamped.
func checkContents(t *testing.T, dir string) {
	for _, arch := range []string{"amd64", "arm64"} {
		s := anySource("")
		top := s.name(arch)
		files := readArchive(t, filepath.Join(dir, top+".tar.gz"))
		for _, want := range []string{"etcd", "etcdctl", "etcdutl", "LICENSE", "README.md", "README.zh-CN.md", "etcd.conf.yml.sample", "systemd/etcd.service"} {
			if _, ok := files[top+"/"+want]; !ok {
				t.Errorf("%s: no %s", arch, want)
			}
		}
		if arch != runtime.GOARCH || runtime.GOOS != "linux" {
			continue
		}
		for _, p := range programs {
			file := filepath.Join(t.TempDir(), p)
			if err := os.WriteFile(file, files[top+"/"+p], 0o700); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(file, "--version").Output()
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"3.7.3\n", "\nGit SHA: 012345678\n", "\nQuorate Version: 9.8.7-rc.1\n", "\nCommit Date: 2026-02-03T04:05:06Z\n"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("%s --version has no %q:\n%s", p, want, out)
				}
			}
		}
	}
}

func readArchive(t *testing.T, name string) map[string][]byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Typeflag == tar.TypeReg && h.Mode != 0o644 && h.Mode != 0o755 {
			t.Errorf("%s: %s has owner %d:%d %q and mode %o", name, h.Name, h.Uid, h.Gid, h.Uname, h.Mode)
		}
	}
}
