package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"quorate/internal/build"
)

// source is the commit that is released.
type source struct {
	root    string
	version string // as in 1.2.3 or 1.2.3-dev.20261128182823.0123abcde
	commit  string
	date    time.Time // of the commit; it is every file's time
}

var versionForm = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$`)

func readSource(ctx context.Context, o options) (source, error) {
	root, err := filepath.Abs(o.root)
	if err != nil {
		return source{}, err
	}
	s := source{root: root}
	if s.commit, err = git(ctx, root, "rev-parse", "HEAD"); err != nil {
		return source{}, err
	}
	seconds, err := git(ctx, root, "show", "-s", "--format=%ct", "HEAD")
	if err != nil {
		return source{}, err
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return source{}, fmt.Errorf("date of the commit: %w", err)
	}
	s.date = time.Unix(n, 0).UTC()
	tags, err := git(ctx, root, "tag", "--points-at", "HEAD", "--list", "v*")
	if err != nil {
		return source{}, err
	}
	changed, err := git(ctx, root, "status", "--porcelain")
	if err != nil {
		return source{}, err
	}
	if changed != "" && !o.dirty {
		return source{}, fmt.Errorf("files are changed, so the release would not be that of the commit; commit them, or try it with -dirty:\n%s", changed)
	}
	s.version, err = versionOf(o.version, strings.Fields(tags), s.commit, s.date, changed != "")
	return s, err
}

// versionOf is the requested version, that of the tag, or else one that sorts before the release in progress.
func versionOf(asked string, tags []string, commit string, date time.Time, dirty bool) (string, error) {
	v := asked
	for _, tag := range tags {
		if v == "" && versionForm.MatchString(tag[1:]) {
			v = tag[1:]
		}
	}
	if v == "" {
		v = fmt.Sprintf("%s.%s.%s", build.Version, date.Format("20060102150405"), commit[:9])
	}
	if !versionForm.MatchString(v) {
		return "", fmt.Errorf("version %q is not of the form 1.2.3 or 1.2.3-rc.1", v)
	}
	if dirty {
		sep := "-"
		if strings.Contains(v, "-") {
			sep = "."
		}
		v += sep + "dirty"
	}
	return v, nil
}

// packaged is the version of packages. It begins with etcd's, because they replace packages of etcd and others
// depend on that version. A version before a release sorts before it.
func (s source) packaged() string {
	return build.EtcdVersion + "+quorate" + strings.Replace(s.version, "-", "~", 1)
}

// packageEpoch prevents a distribution's next etcd from replacing ours automatically: it could not read the data
// directory.
const packageEpoch = "1"

// name is the prefix of the name of each file that is not a package.
func (s source) name(arch string) string { return "quorate-" + s.version + "-linux-" + arch }

func git(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(string(bytes.TrimSpace(exit.Stderr)))
		}
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}
