package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
)

func main() {
	var o options
	var archs string
	flag.StringVar(&o.root, "root", "..", "directory of the repository")
	flag.StringVar(&o.out, "out", "../dist", "directory for the files; what is in it is removed")
	flag.StringVar(&archs, "arch", "amd64,arm64", "architectures, with commas")
	flag.StringVar(&o.version, "version", "", "version, instead of that of the commit's tag vX.Y.Z")
	flag.BoolVar(&o.dirty, "dirty", false, "go on when files are changed; the version says so")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	o.archs = strings.Split(archs, ",")
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	src, err := readSource(ctx, o)
	if err == nil {
		err = makeRelease(ctx, src, o.archs, o.out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// options are the inputs of a release.
type options struct {
	root, out string
	archs     []string
	version   string
	dirty     bool
}

// makeRelease builds the files of all architectures and their checksums. It works in a temporary directory and
// moves the result into place at the end, so an interrupted run leaves the previous release unchanged.
func makeRelease(ctx context.Context, src source, archs []string, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	made := filepath.Join(work, "out")
	if err := os.Mkdir(made, 0o755); err != nil {
		return err
	}
	for _, arch := range archs {
		fmt.Printf("%s: linux/%s\n", src.version, arch)
		if err := makeArch(ctx, src, arch, filepath.Join(work, arch), made); err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
	}
	if err := writeSums(made); err != nil {
		return err
	}
	if err := replace(made, out); err != nil {
		return err
	}
	fmt.Println("files are in", out)
	return nil
}

func makeArch(ctx context.Context, src source, arch, work, out string) error {
	s, err := newStage(ctx, src, arch, work)
	if err != nil {
		return err
	}
	for _, step := range []func(*stage, string) error{writeArchive, writeDebs, writeRPM, writeImage, writeSBOM} {
		if err := step(s, out); err != nil {
			return err
		}
	}
	return nil
}

// replace moves the new directory to the place of old, which is removed only if it is a release or empty.
func replace(made, old string) error {
	entries, err := os.ReadDir(old)
	switch {
	case os.IsNotExist(err):
	case err != nil:
		return err
	case len(entries) > 0:
		if _, err := os.Stat(filepath.Join(old, sumsFile)); err != nil {
			return fmt.Errorf("%s holds no %s, so it is not a release, and is not replaced by one", old, sumsFile)
		}
	}
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	return os.Rename(made, old)
}
