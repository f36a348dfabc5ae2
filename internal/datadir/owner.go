package datadir

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"quorate/internal/ids"
)

// Format is the newest layout of a data directory that this version reads, and the one
// that it writes. It is raised when an older version would misread the new layout.
const Format = 1

// The file OWNER names the member and cluster of a data directory, so that a log of
// another member is refused before the store is opened (opening it already writes to
// it). It also names the format of the directory. A directory without the file is
// checked by Home.CheckTogether alone and then gets one. No format means the first.

const formatLine = "format "

func ownerText(member ids.Member, cluster ids.Cluster) string {
	return fmt.Sprintf("member %s of cluster %s\n", member, cluster)
}

// readOwner returns the owner of the directory as ownerText formats it, empty if there
// is no file. It returns an error for an unknown format and for a damaged file.
func (l Layout) readOwner() (string, error) {
	text, err := ReadNote(l.FS, l.Owner())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	who, format, found := strings.Cut(text, formatLine)
	if !found {
		return who, nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(format))
	switch {
	case err != nil || n < 1:
		return "", fmt.Errorf("%s names no format: %q", l.Owner(), strings.TrimSpace(formatLine+format))
	case n > Format:
		return "", fmt.Errorf("the data directory %s has format %d, and this version knows formats up to %d: it was used by a newer version, which must open it; "+
			"to go back, remove this member from its cluster and add it again with an empty directory, or restore a backup", l.DataDir, n, Format)
	}
	return who, nil
}

// CheckFormat refuses a directory written by a version whose files this one may
// misread.
func (l Layout) CheckFormat() error {
	_, err := l.readOwner()
	return err
}

// CheckOwner refuses a directory that belongs to another member than the raft log.
func (l Layout) CheckOwner(member ids.Member, cluster ids.Cluster) error {
	got, want := "", ownerText(member, cluster)
	got, err := l.readOwner()
	if err != nil || got == "" || got == want {
		return err
	}
	return fmt.Errorf("--data-dir %s and --wal-dir %s do not belong together: the store is of %s, the raft log of %s",
		l.DataDir, l.WAL(), strings.TrimSpace(got), strings.TrimSpace(want))
}

// WriteOwner records the owner of the directory, unless it is already recorded.
func (l Layout) WriteOwner(member ids.Member, cluster ids.Cluster) error {
	if got, err := l.readOwner(); err != nil || got != "" {
		return err
	}
	return WriteNote(l.FS, l.Owner(), ownerText(member, cluster)+formatLine+strconv.Itoa(Format)+"\n")
}
