package main

import (
	"io"
	"path/filepath"

	"quorate/internal/build"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

const (
	maintainer = "Quorate maintainers <maintainers@quorate.invalid>"
	describe   = `distributed, strongly consistent key-value store, compatible with etcd
Quorate provides the programs, flags, files and interfaces of etcd ` + build.EtcdVersion + `,
and converts data directories of etcd 3.5, 3.6 and 3.7 in place.`
)

// writeDebs builds the two Debian packages under Debian's names: so installing them is an upgrade that keeps
// configuration, user and data, and packages that depend on etcd-server are satisfied.
func writeDebs(s *stage, out string) error {
	server := s.info("etcd-server", describe+"\n.\nThis package contains the server.")
	server.Depends = []string{"init-system-helpers (>= 1.54~)", "passwd"}
	server.Recommends = []string{"etcd-client", "ca-certificates"}
	server.Contents = contents(append(s.serverItems("/usr/share/zsh/vendor-completions"),
		item{from: s.part("default"), to: "/usr/share/etcd-server/default", mode: 0o644},
		item{from: s.part("etcd.conf.yml"), to: "/usr/share/etcd-server/etcd.conf.yml", mode: 0o644},
		item{from: s.part("deb/init"), to: "/etc/init.d/etcd", mode: 0o755, config: true}), "etcd-server", s)
	server.Scripts = nfpm.Scripts{
		PreInstall: s.part("deb/preinst"), PostInstall: s.part("deb/postinst"),
		PreRemove: s.part("deb/prerm"), PostRemove: s.part("deb/postrm"),
	}
	if err := writePackage(deb.Default, server, out); err != nil {
		return err
	}
	client := s.info("etcd-client", describe+"\n.\nThis package contains etcdctl and etcdutl.")
	// Where a distribution has etcdutl differs.
	client.Replaces = []string{"etcd-server (<< 1:3.7)"}
	client.Contents = contents(s.clientItems("/usr/share/zsh/vendor-completions"), "etcd-client", s)
	return writePackage(deb.Default, client, out)
}

// writeRPM builds the single RPM package, under Fedora's name.
func writeRPM(s *stage, out string) error {
	info := s.info("etcd", describe)
	info.Release = "1"
	info.Depends = []string{"shadow-utils", "systemd"}
	info.Recommends = []string{"ca-certificates"}
	info.RPM = nfpm.RPM{Summary: "Distributed, strongly consistent key-value store, compatible with etcd", Group: "Unspecified",
		BuildHost: "localhost", Packager: maintainer}
	info.Scripts = nfpm.Scripts{
		PreInstall: s.part("rpm/pre"), PostInstall: s.part("rpm/post"),
		PreRemove: s.part("rpm/preun"), PostRemove: s.part("rpm/postun"),
	}
	const zsh = "/usr/share/zsh/site-functions"
	info.Contents = contents(append(append(s.serverItems(zsh), s.clientItems(zsh)...),
		item{from: s.part("default"), to: "/etc/etcd/etcd.conf", mode: 0o644, config: true},
		item{from: s.part("etcd.conf.yml"), to: "/etc/etcd/etcd.conf.yml", mode: 0o644, config: true}), "etcd", s)
	// A directory that is not empty stays when the package is removed.
	info.Contents = append(info.Contents, &files.Content{Destination: "/var/lib/etcd", Type: files.TypeDir,
		FileInfo: &files.ContentFileInfo{Owner: "etcd", Group: "etcd", Mode: 0o700, MTime: s.date}})
	return writePackage(rpm.DefaultRPM, info, out)
}

// help are the page and the completions of a program.
func (s *stage) help(program, zsh string) []item {
	return []item{
		{from: s.part("man/" + program + ".1.gz"), to: "/usr/share/man/man1/" + program + ".1.gz", mode: 0o644},
		{from: s.part("completions/" + program), to: "/usr/share/bash-completion/completions/" + program, mode: 0o644},
		{from: s.part("completions/_" + program), to: zsh + "/_" + program, mode: 0o644},
		{from: s.part("completions/" + program + ".fish"), to: "/usr/share/fish/vendor_completions.d/" + program + ".fish", mode: 0o644},
	}
}

func (s *stage) serverItems(zsh string) []item {
	return append(s.help("etcd", zsh), []item{
		{from: s.program("etcd"), to: "/usr/bin/etcd", mode: 0o755},
		{from: s.part("etcd.service"), to: "/usr/lib/systemd/system/etcd.service", mode: 0o644},
		{from: s.part("sysusers.conf"), to: "/usr/lib/sysusers.d/etcd.conf", mode: 0o644},
		{from: s.part("tmpfiles.conf"), to: "/usr/lib/tmpfiles.d/etcd.conf", mode: 0o644},
	}...)
}

func (s *stage) clientItems(zsh string) []item {
	return append(append(s.help("etcdctl", zsh), s.help("etcdutl", zsh)...), []item{
		{from: s.program("etcdctl"), to: "/usr/bin/etcdctl", mode: 0o755},
		{from: s.program("etcdutl"), to: "/usr/bin/etcdutl", mode: 0o755},
	}...)
}

func (s *stage) info(name, description string) *nfpm.Info {
	return &nfpm.Info{
		Name: name, Arch: s.arch, Platform: "linux",
		Epoch: packageEpoch, Version: s.packaged(), VersionSchema: "none",
		Section: "net", Priority: "optional",
		Maintainer: maintainer, Description: description, License: "Apache-2.0",
		DisableGlobbing: true, MTime: s.date,
	}
}

// contents are items and the documents of the package.
func contents(items []item, pkg string, s *stage) files.Contents {
	items = append(items, at("/usr/share/doc/"+pkg, 0o644,
		s.fromRoot("README.md"), s.fromRoot("README.zh-CN.md"), s.fromRoot("docs/differences.md"), s.fromRoot("docs/migrating-from-etcd.md"))...)
	items = append(items, item{from: s.fromRoot("LICENSE"), to: "/usr/share/doc/" + pkg + "/copyright", mode: 0o644})
	items = append(items, at("/usr/share/doc/"+pkg, 0o644, s.part(licensesFile))...)
	var out files.Contents
	for _, i := range items {
		c := &files.Content{Source: i.from, Destination: i.to, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: i.mode, MTime: s.date}}
		if i.config {
			c.Type = files.TypeConfigNoReplace
		}
		out = append(out, c)
	}
	return out
}

func writePackage(p nfpm.Packager, info *nfpm.Info, out string) error {
	info = nfpm.WithDefaults(info)
	return writeFile(filepath.Join(out, p.ConventionalFileName(info)), func(w io.Writer) error { return p.Package(info, w) })
}
