package main

import (
	"context"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

var (
	flagEtcd35 = flag.String("etcd35", "", "real etcd 3.5, for packages as Debian's are")
	flagDebian = flag.String("debian", "", "Debian's own etcd-server package, in place of one that is like it")
)

// TestInstall installs the packages in a copy of this system: over Debian's, on a clean system, and over one of
// etcd 3.4.
func TestInstall(t *testing.T) {
	if reason := noSandbox(); reason != "" {
		t.Skip("no sandbox: " + reason)
	}
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	made := madeRelease(t)
	for pattern, name := range map[string]string{"etcd-server_*_" + runtime.GOARCH + ".deb": "etcd-server.deb", "etcd-client_*_" + runtime.GOARCH + ".deb": "etcd-client.deb"} {
		found, err := filepath.Glob(filepath.Join(made, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		copyFile(t, found[0], filepath.Join(shared, name), 0o644)
	}
	top := anySource("").name(runtime.GOARCH)
	if err := os.WriteFile(filepath.Join(shared, "etcdctl"), readArchive(t, filepath.Join(made, top+".tar.gz"))[top+"/etcdctl"], 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sandbox", "common", "upgrade", "fresh", "old"} {
		copyFile(t, filepath.Join("testdata", name), filepath.Join(shared, name), 0o644)
	}
	t.Run("fresh", func(t *testing.T) { scenario(t, shared, "fresh") })
	if *flagEtcd35 == "" {
		t.Skip("without -etcd35 there is no package of Debian's to be upgraded; make release-test gives it")
	}
	debianPackage(t, "3.5.16-4", filepath.Join(shared, "debian.deb"))
	t.Run("upgrade", func(t *testing.T) { scenario(t, shared, "upgrade") })
	// The version of the package is what counts.
	if *flagDebian != "" {
		copyFile(t, *flagDebian, filepath.Join(shared, "debian34.deb"), 0o644)
	} else {
		debianPackage(t, "3.4.23-4", filepath.Join(shared, "debian34.deb"))
	}
	t.Run("old", func(t *testing.T) { scenario(t, shared, "old") })
}

// noSandbox is the reason why this machine cannot create a sandbox.
func noSandbox() string {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return "it takes Linux and root"
	}
	for _, tool := range []string{"dpkg", "unshare", "chroot", "ip", "pgrep", "start-stop-daemon", "invoke-rc.d", "update-rc.d", "deb-systemd-helper"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "there is no " + tool
		}
	}
	if _, err := os.Stat("/lib/init/init-d-script"); err != nil {
		return "services cannot be started without systemd here"
	}
	dir, err := os.MkdirTemp("", "sandbox")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "nothing"), nil, 0o644); err != nil {
		return err.Error()
	}
	copied, err := os.ReadFile("testdata/sandbox")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "sandbox"), copied, 0o644)
	}
	if err != nil {
		return err.Error()
	}
	if out, err := sandbox(context.Background(), dir, "nothing"); err != nil {
		return err.Error() + ": " + string(out)
	}
	return ""
}

// scenario runs the file of that name in a sandbox of its own.
func scenario(t *testing.T, shared, name string) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if out, err := sandbox(ctx, shared, name); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// sandbox runs a file of the directory shared. All processes it started end with it, because its namespace does.
func sandbox(ctx context.Context, shared, file string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "sandbox")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // the mounts are in the namespace alone
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "/bin/sh", "-eu", filepath.Join(shared, "sandbox"), dir, shared, file)
	cmd.WaitDelay = 10 * time.Second // a server may hold the pipe
	return cmd.CombinedOutput()
}

// debianPackage builds a package that installs real etcd 3.5 as Debian's etcd-server does: the same paths,
// settings, user and effects of scripts.
func debianPackage(t *testing.T, version, to string) {
	t.Helper()
	file := func(from, to string, mode fs.FileMode, kind string) *files.Content {
		return &files.Content{Source: from, Destination: to, Type: kind, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode}}
	}
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: "etcd-server", Arch: runtime.GOARCH, Version: version, VersionSchema: "none", Maintainer: maintainer, Description: "as Debian's", DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Contents: files.Contents{
				file(*flagEtcd35, "/usr/bin/etcd", 0o755, ""),
				file("testdata/debian/init", "/etc/init.d/etcd", 0o755, files.TypeConfig),
				file("testdata/debian/default", "/etc/default/etcd", 0o644, files.TypeConfig),
				file("testdata/debian/service", "/lib/systemd/system/etcd.service", 0o644, ""),
			},
			Scripts: nfpm.Scripts{PostInstall: "testdata/debian/postinst", PreRemove: "testdata/debian/prerm", PostRemove: "testdata/debian/postrm"},
		},
	})
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := deb.Default.Package(info, f); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string, mode fs.FileMode) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}
