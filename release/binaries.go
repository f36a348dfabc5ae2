package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

var programs = []string{"etcd", "etcdctl", "etcdutl"}

// buildBinaries builds the programs into dir. What would make them differ between machines is set here or turned
// off: paths, the C library, the processor's feature level, the environment of go, and go's look at the
// checkout, in place of which the commit is stamped.
func buildBinaries(ctx context.Context, src source, arch, dir string) error {
	const pkg = "quorate/internal/build"
	ldflags := fmt.Sprintf("-s -w -buildid= -X %s.Version=%s -X %s.commit=%s -X %s.date=%s",
		pkg, src.version, pkg, src.commit, pkg, src.date.Format(time.RFC3339))
	args := []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", ldflags, "-o", dir + "/"}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = src.root
	cmd.Env = append(cleanEnv(os.Environ()), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOWORK=off", "GOENV=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build: %w", err)
	}
	return nil
}

// cleanEnv is env without what changes the code that go generates. GOPROXY and the like stay: go.sum verifies
// what comes from there.
func cleanEnv(env []string) []string {
	var out []string
	for _, e := range env {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "GOFLAGS", "GOEXPERIMENT", "GOAMD64", "GOARM64", "GOFIPS140", "GOOS", "GOARCH", "CGO_ENABLED", "GOWORK", "GOENV", "GOROOT_FINAL":
		default:
			out = append(out, e)
		}
	}
	return out
}
