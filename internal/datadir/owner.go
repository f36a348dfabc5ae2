package datadir

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"quorate/internal/membership"
)

// Format is the newest layout of a data directory that this version reads, and the one
// that it writes. It rises when an older version would misread what a newer one leaves.
const Format = 1

// The file OWNER names the member and the cluster that a data directory is of, so that a
// log of another member is refused before the store is opened, which already writes to
// it; and the format of the directory. A directory that lost it, or comes from elsewhere,
// is judged by Home.CheckTogether alone and gets one. One without a format has the first.

const formatLine = "format "

func ownerText(member, cluster uint64) string {
	return fmt.Sprintf("member %s of cluster %s\n", membership.FormatID(member), membership.FormatID(cluster))
}

// readOwner returns whose the directory is, in the words of ownerText; empty if nothing
// says so. Errors: a format that is not known, a damaged file, the file system's.
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

// CheckFormat refuses a directory that was written by a version whose files this one may
// misread.
func (l Layout) CheckFormat() error {
	_, err := l.readOwner()
	return err
}

// CheckOwner refuses a directory that is of another member than the raft log.
func (l Layout) CheckOwner(member, cluster uint64) error {
	got, want := "", ownerText(member, cluster)
	got, err := l.readOwner()
	if err != nil || got == "" || got == want {
		return err
	}
	return fmt.Errorf("--data-dir %s and --wal-dir %s do not belong together: the store is of %s, the raft log of %s",
		l.DataDir, l.WAL(), strings.TrimSpace(got), strings.TrimSpace(want))
}

// WriteOwner notes whose the directory is, unless that is known.
func (l Layout) WriteOwner(member, cluster uint64) error {
	if got, err := l.readOwner(); err != nil || got != "" {
		return err
	}
	return WriteNote(l.FS, l.Owner(), ownerText(member, cluster)+formatLine+strconv.Itoa(Format)+"\n")
}
