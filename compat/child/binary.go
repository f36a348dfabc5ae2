package child

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Module is the module whose commands are built, relative to a test's directory.
const Module = "../.."

// Binary returns the absolute path of a command of this project: path if that is given, otherwise
// the command built from source into dir.
func Binary(path, command, dir string) (string, error) {
	if path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(abs); err != nil {
			return "", fmt.Errorf("-%s: %w (make cluster-test builds and passes it)", command, err)
		}
		return abs, nil
	}
	out := filepath.Join(dir, command)
	cmd := exec.Command("go", "build", "-o", out, "./cmd/"+command)
	cmd.Dir = Module
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ./cmd/%s (or give one with -args -%s=PATH): %w\n%s", command, command, err, b)
	}
	return out, nil
}
