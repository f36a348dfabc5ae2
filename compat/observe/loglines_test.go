package observe

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// lines are the messages of a log above debug, with the fields that came with each of them.
type lines map[string]map[string]bool

// ids matches what differs between runs in a message: ids, terms, indexes, lists of them.
var ids = regexp.MustCompile(`\b[0-9a-f]{15,16}\b(,ID)*|\(ID( ID)*\)|\b\d+\b`)

// each iterates over the lines of a log above debug that are not a library's.
func each(t *testing.T, path string, do func(msg string, fields map[string]any)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		var fields map[string]any
		if json.Unmarshal(s.Bytes(), &fields) != nil {
			continue // an unfinished line
		}
		msg, _ := fields["msg"].(string)
		caller := fmt.Sprint(fields["caller"])
		if fields["level"] == "debug" || strings.Contains(caller, "zapgrpc") || fields["logger"] == "bbolt" || strings.Contains(msg, "bbolt") || strings.HasPrefix(msg, "Opening db file") {
			continue
		}
		do(ids.ReplaceAllString(msg, "ID"), fields)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// read adds what a member has logged.
func (l lines) read(t *testing.T, path string) {
	t.Helper()
	each(t, path, func(msg string, fields map[string]any) {
		if l[msg] == nil {
			l[msg] = map[string]bool{}
		}
		for name, value := range fields {
			if name == "level" || name == "logger" {
				name = fmt.Sprintf("%s %v", name, value)
			}
			l[msg][name] = true
		}
	})
}

// counts is how often each message occurs in a log.
func counts(t *testing.T, path string) map[string]int {
	t.Helper()
	n := map[string]int{}
	each(t, path, func(msg string, _ map[string]any) { n[msg]++ })
	return n
}

// notOurs are messages of etcd about its own construction rather than about events, and those that depend on
// timing although the day waits for what can be waited for: each kind with its reason.
var notOurs = map[string][]string{
	"the backend and its loading are another engine's": {
		"recovered v3 backend", "restor(ed|ing) (alarm store|auth store|lease store|mvcc store|cluster configuration)", "restore consistentIndex", "kvstore restored",
		"clos(ed|ing) old backend file", "applySnapshot: opened snapshot backend", "Skipping snapshot backend", "Constructed a new raft snapshot from v3 state",
		"constructed a snapshot from WAL record", "compact tree index", "storing new hash", "defragmenting", "finished defragmenting directory", "saved database snapshot to disk",
		"sent database snapshot to writer", "applied incoming Raft snapshot", "skip compaction since there is an inflight snapshot", "started to purge file", "purged",
		"Cluster version downgrade detected, forcing snapshot", "failed to update storage version", "Failed to detect schema version",
	},
	"there is no such step or goroutine": {
		"bootstrapping (cluster|raft|storage)", "bootstrap successfully", "Bootstrapping WAL from snapshot", "(adding|added) peers from new cluster configuration",
		"remov(ing|ed) old peers from network", "cmux::serve", "(started|stopped) HTTP pipelining with remote peer", "(started|stopped) stream (reader|writer) with remote peer",
		"set message encoder", "server has stopped; stopping (cluster|storage) version's monitor", "(stopping|stopped) (in)?secure grpc server due to error",
		"setting up serving from embedded etcd failed\\.", "starting initial election tick advance",
	},
	"slow requests, which TestSlowRequests compares": {"apply request took too long", "request stats", "trace"},
	"the machine is slow at the moment":              {"slow fdatasync", "leader failed to send out heartbeat on time.*"},
	"a queue is full at the moment":                  {"dropped (internal )?Raft message since (sending|receiving) buffer is full.*"},
	"a read that waits is asked for again when a leader comes, or is answered twice": {
		"first commit in current term: resending ReadIndex request", "ignored out-of-date read index response.*",
	},
	"another process has taken a port between two starts": {"listener failed"},
	"what a removed member still sends arrives or does not": {
		"skipped attributes update of removed member", "rejected Raft message from removed member", "failed to process Raft message",
	},
	"the first start takes longer than a request may; the TLS test has it in any case":   {"failed to publish local member to cluster through raft"},
	"a member ends while it is announcing itself":                                        {"stopped publish because server is stopping"},
	"names are resolved once; etcd resolves addresses, too, if two lists of URLs differ": {"resolved URL Host"},
	"members of etcd apply the membership twice":                                         {"ignore already (added|promoted|removed|updated) member.*", "Skipped updating non-existent member in v2store", "ignored already updated member"},
}

// fieldsWithout are fields of etcd's that our line omits, by message.
var fieldsWithout = map[string][]string{
	"sending merged snapshot":   {"bytes", "size"}, // the size is known when it is sent
	"sending database snapshot": {"bytes", "size"},
	// One line is for all followers.
	"leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk": {"to"},
	// The space is reclaimed later, and the hash is in the line of the check that compares it.
	"finished scheduled compaction": {"current-db-size-bytes", "current-db-size", "current-db-size-in-use-bytes", "current-db-size-in-use", "hash"},
}

// lived takes both programs through the same life and returns their logs.
func lived(t *testing.T, life func(*testing.T, string) lines) (real, ours lines) {
	programs := bothBinaries(t)
	var got [2]lines
	t.Run("life", func(t *testing.T) {
		for i, name := range []string{"etcd", "ours"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				got[i] = life(t, programs[i])
			})
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return got[0], got[1]
}

// compare looks for messages and fields of etcd's that ours lacks. What both logs of etcd have must be present
// regardless of timing; what only one of them has depends on timing.
func compare(t *testing.T, real, ours lines, both, not []string) {
	var left []*regexp.Regexp
	for _, patterns := range notOurs {
		for _, p := range patterns {
			left = append(left, regexp.MustCompile("^(?:"+p+")$"))
		}
	}
	for _, msg := range slices.Sorted(maps.Keys(real)) {
		excused := slices.ContainsFunc(left, func(r *regexp.Regexp) bool { return r.MatchString(msg) })
		if ours[msg] == nil {
			if slices.Contains(not, msg) {
				continue
			}
			if real[msg]["logger raft"] {
				continue // one library for both; which of its steps an election takes depends on timing
			}
			if !excused {
				t.Errorf("etcd says %q %v, and ours does not", msg, slices.Sorted(maps.Keys(real[msg])))
			}
			continue
		}
		if excused {
			continue // its fields depend on the event
		}
		for f := range real[msg] {
			if !ours[msg][f] && f != "stacktrace" && !slices.Contains(fieldsWithout[msg], f) {
				t.Errorf("etcd's %q has the field %s, and ours has not", msg, f)
			}
		}
	}
	for _, msg := range slices.Sorted(maps.Keys(ours)) {
		if real[msg] == nil {
			t.Logf("ours alone: %s %v", msg, slices.Sorted(maps.Keys(ours[msg])))
		}
	}
	for _, msg := range both {
		if ours[msg] == nil || real[msg] == nil {
			t.Errorf("%q: real etcd %t, ours %t", msg, real[msg] != nil, ours[msg] != nil)
		}
	}
}

// The events in the life of a cluster are logged in the same words as etcd's, with its fields.
func TestLogLines(t *testing.T) {
	t.Parallel()
	real, ours := lived(t, live)
	compare(t, real, ours, []string{"added member", "removed member", "promote member", "updated member", "Skipping defragmentation", "enabled authentication",
		"saved snapshot to disk", "set initial cluster version", "updated cluster version", "ready to serve client requests",
		"published local member to cluster through raft", "leadership transfer finished", "ID became leader at term ID",
		"raft.node: ID elected leader ID at term ID", "ID switched to configuration voters=(ID ID)", "cluster version differs from storage version.",
		"updated storage version", "The server is ready to downgrade", "remotes server has mismatching etcd version", "reject downgrade request",
		"successfully sent database snapshot to client", "applied snapshot", "sent merged snapshot", "serving /health false due to an alarm",
		"serving /health false; no leader", "rejecting promote learner: learner is not ready"},
		// A request arrives while the leader steps down.
		[]string{"serving /health false; Range fails"})
}

// TestLogLinesTLS does the same with certificates, which change.
func TestLogLinesTLS(t *testing.T) {
	t.Parallel()
	real, ours := lived(t, liveTLS)
	compare(t, real, ours, []string{"starting with client TLS", "starting with peer TLS", "serving client traffic securely", "rejected connection on client endpoint",
		"rejected connection on peer endpoint", "failed to publish local member to cluster through raft",
		"--v2-deprecation is deprecated and scheduled for removal in v3.ID. The default value is enforced, ignoring user input."},
		// A leader that cannot ask the other member yet begins with version 3.0.
		[]string{"updated cluster version", "cluster version differs from storage version.", "updated storage version"})
}
