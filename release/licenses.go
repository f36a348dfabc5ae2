package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const licensesFile = "THIRD-PARTY-LICENSES"

var licenseName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// writeLicenses collects the licenses of all modules in the programs: most of them must accompany binaries.
func (s *stage) writeLicenses(ctx context.Context) error {
	modules, _, err := s.modules()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("The programs contain the modules below, under these licenses.\n")
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		m := modules[ref]
		dir, err := s.moduleDir(ctx, m.Path, m.Version)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		found := false
		for _, e := range entries {
			if e.IsDir() || !licenseName.MatchString(e.Name()) {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			found = true
			fmt.Fprintf(&b, "\n%s\n%s %s: %s\n\n%s\n", strings.Repeat("=", 80), m.Path, m.Version, e.Name(), bytes.TrimSpace(data))
		}
		if !found {
			return fmt.Errorf("module %s %s has no license in %s", m.Path, m.Version, dir)
		}
	}
	return s.add(licensesFile, b.Bytes())
}

// moduleDir is the directory in which go keeps the files of a module.
func (s *stage) moduleDir(ctx context.Context, path, version string) (string, error) {
	args := []string{"list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path}
	if path == "std" {
		args = []string{"env", "GOROOT"}
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = s.root
	cmd.Env = append(cleanEnv(os.Environ()), "GOWORK=off", "GOENV=off")
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err == nil && dir == "" {
		err = errors.New("its files are not there; run go mod download")
	}
	if err != nil {
		return "", fmt.Errorf("module %s %s: %w", path, version, err)
	}
	return dir, nil
}
