package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"quorate/internal/build"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// imageUser runs the programs in a container. It is a number, because Kubernetes cannot tell from a name that
// the user is not root.
const imageUser = 65532

// writeImage builds the image, as a file that is an OCI layout and that docker load accepts as well. It starts
// from scratch: there is no shell, no library and no program except ours. The programs are where etcd's image
// has them.
func writeImage(s *stage, out string) error {
	system, err := s.systemLayer()
	if err != nil {
		return err
	}
	var binaries []item
	for _, p := range programs {
		binaries = append(binaries, item{from: s.program(p), to: "usr/local/bin/" + p, mode: 0o755})
	}
	var b bytes.Buffer
	if err := writeTar(&b, "", binaries, s.date); err != nil {
		return err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range []struct {
		tar  []byte
		what string
	}{{system, "user, directories, CA certificates"}, {b.Bytes(), "etcd, etcdctl, etcdutl"}} {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l.tar)), nil }, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: s.date}, CreatedBy: "make release", Comment: l.what}}); err != nil {
			return err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture, cfg.OS, cfg.Created = s.arch, "linux", v1.Time{Time: s.date}
	cfg.Config = s.imageConfig()
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	return s.writeImageFile(img, out)
}

// imageConfig is how the image runs. By default a member keeps its data in the working directory; an environment
// variable for it would conflict with --data-dir.
func (s *stage) imageConfig() v1.Config {
	return v1.Config{
		User:         fmt.Sprintf("%d:%d", imageUser, imageUser),
		Env:          []string{"PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
		WorkingDir:   "/var/lib/etcd",
		Cmd:          []string{"/usr/local/bin/etcd"},
		ExposedPorts: map[string]struct{}{"2379/tcp": {}, "2380/tcp": {}},
		StopSignal:   "SIGTERM",
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/usr/local/bin/etcdctl", "endpoint", "health"},
			Interval: 30 * time.Second, Timeout: 10 * time.Second, StartPeriod: time.Minute, Retries: 3},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "Quorate",
			"org.opencontainers.image.version":  s.version,
			"org.opencontainers.image.revision": s.commit,
			"org.opencontainers.image.created":  s.date.Format(time.RFC3339),
			"org.opencontainers.image.licenses": "Apache-2.0",
			"etcd.version":                      build.EtcdVersion,
		},
	}
}

// systemLayer has the files that programs expect of a system, and the directories that the user may write.
func (s *stage) systemLayer() ([]byte, error) {
	roots, err := rootCertificates()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	dir := func(name string, mode int64, owner int) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: owner, Gid: owner, ModTime: s.date, Format: tar.FormatUSTAR})
	}
	file := func(name string, data []byte) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: s.date, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := t.Write(data)
		return err
	}
	for _, d := range []struct {
		name  string
		mode  int64
		owner int
	}{{"etc", 0o755, 0}, {"etc/ssl", 0o755, 0}, {"etc/ssl/certs", 0o755, 0}, {"tmp", 0o1777, 0}, {"var", 0o755, 0},
		{"var/etcd", 0o700, imageUser}, {"var/lib", 0o755, 0}, {"var/lib/etcd", 0o700, imageUser}} {
		if err := dir(d.name, d.mode, d.owner); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct{ name, data string }{
		{"etc/passwd", fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\netcd:x:%d:%d:etcd:/var/lib/etcd:/sbin/nologin\n", imageUser, imageUser)},
		{"etc/group", fmt.Sprintf("root:x:0:\netcd:x:%d:\n", imageUser)},
		{"etc/nsswitch.conf", "hosts: files dns\n"},
		{"etc/ssl/certs/ca-certificates.crt", string(roots)},
	} {
		if err := file(f.name, []byte(f.data)); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), t.Close()
}

// rootCertificates are those of Mozilla's list, as Go's maintainers publish it. Authorities that are trusted
// only for what they signed before some date are left out: a PEM file cannot express that.
func rootCertificates() ([]byte, error) {
	var b bytes.Buffer
	n := 0
	for r := range bundle.Roots() {
		if r.Constraint != nil {
			continue
		}
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "# %s\n", c.Subject)
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate}); err != nil {
			return nil, err
		}
		n++
	}
	if n < 50 {
		return nil, fmt.Errorf("only %d authorities in the bundle", n)
	}
	return b.Bytes(), nil
}

// writeImageFile writes the layout as a tar, with a docker save manifest that names the same blobs.
func (s *stage) writeImageFile(img v1.Image, out string) error {
	dir := filepath.Join(s.dir, "image")
	tag := "quorate:" + s.version
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := l.AppendImage(img, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": s.version, "io.containerd.image.name": tag}), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: s.arch})); err != nil {
		return err
	}
	if err := dockerManifest(dir, tag, img); err != nil {
		return err
	}
	var items []item
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, p)
		items = append(items, item{from: p, to: filepath.ToSlash(name), mode: 0o644})
		return err
	})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(out, s.name(s.arch)+".oci.tar"), func(w io.Writer) error { return writeTar(w, "", items, s.date) })
}

func dockerManifest(dir, tag string, img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blob(m.Config.Digest), RepoTags: []string{tag}}
	for _, layer := range m.Layers {
		entry.Layers = append(entry.Layers, blob(layer.Digest))
	}
	data, err := json.Marshal([]any{entry})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "manifest.json"), data, 0o644)
}
