package mixed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// excused are lines of level error that members of real etcd write in clusters of their own as well, by the
// prefix of their message.
var excused = []struct{ kind, msg, reason string }{
	{"etcd3", "Validation on configuration change failed",
		"etcd says so about every membership change that is refused when it is applied, whichever member proposed it; a change that a client repeats because its answer was lost is one"},
	{"etcd3", "failed to update storage version",
		"a member that starts may learn the cluster's version before its first batch, with the term and the configuration, is stored; it tries again some seconds later. Members of 3.7 among themselves write it nearly every time when one joins"},
	{"etcd3", "setting up serving from embedded etcd failed.",
		"etcd says so about its own listeners whenever it is asked to stop"},
}

// grpcLine is a line that the gRPC library, in every kind of server, writes without the logger about connections
// that clients have closed.
var grpcLine = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d WARNING: \[`)

// line is the part of a log line that the check reads.
type line struct{ Level, Msg, Error string }

// checkLogs reads the logs of all processes that ever ran.
func (g *group) checkLogs() {
	warned := map[string]int{}
	for _, m := range g.logs {
		if m.proc == nil {
			continue
		}
		f, err := os.Open(m.proc.LogPath())
		if err != nil {
			g.t.Errorf("log of %s: %v", m, err)
			continue
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		s.Buffer(nil, 4<<20)
		for s.Scan() {
			var l line
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				if grpcLine.Match(s.Bytes()) {
					continue
				}
				g.t.Errorf("%s writes what is no log line: %.300q", m, s.Text())
				continue
			}
			switch l.Level {
			case "debug", "info":
			case "warn":
				warned[fmt.Sprintf("%s: %s", m.kind.name, l.Msg)]++
			default:
				if m.expectFailure != "" && strings.Contains(l.Error, m.expectFailure) {
					continue
				}
				if strings.Contains(s.Text(), portTaken) {
					continue // it was restarted at another one
				}
				if !m.excused(l) {
					g.t.Errorf("%s logs at level %s: %s", m, l.Level, s.Text())
				}
			}
		}
		if err := s.Err(); err != nil {
			g.t.Errorf("log of %s: %v", m, err)
		}
	}
	for _, w := range slices.Sorted(maps.Keys(warned)) {
		g.t.Logf("warned %5d times: %s", warned[w], w)
	}
}

func (m *member) excused(l line) bool {
	for _, x := range excused {
		if strings.HasPrefix(m.kind.name, x.kind) && strings.HasPrefix(l.Msg, x.msg) {
			return true
		}
	}
	return false
}
