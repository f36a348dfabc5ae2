package build

import (
	"strings"
	"testing"
)

func TestWhatIsStampedIsShown(t *testing.T) {
	defer func(v, c, d string) { Version, commit, date = v, c, d }(Version, commit, date)
	Version, commit, date = "1.2.3", "0123456789abcdef0123456789abcdef01234567", "2026-11-28T18:28:23Z"
	want := "etcdctl version: 3.7.3\nAPI version: 3.7\nGit SHA: 012345678\nQuorate Version: 1.2.3\nCommit Date: 2026-11-28T18:28:23Z\n"
	if got := ToolVersion("etcdctl"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWithoutAStampNothingIsMadeUp(t *testing.T) {
	defer func(c, d string) { commit, date = c, d }(commit, date)
	for _, bad := range []string{"short", "not a date at all"} {
		commit, date = "1234", bad
		if !strings.HasPrefix(Commit(), "Not provided") || !strings.HasPrefix(Date(), "Not provided") {
			t.Errorf("%q gives commit %q and date %q", bad, Commit(), Date())
		}
	}
}
