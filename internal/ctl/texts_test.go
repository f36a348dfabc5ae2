package ctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Texts that operators and scripts look for: those of etcdctl 3.7, with the exit code of
// the command. Each must be in a transcript with that code, so that a command which nobody
// has recorded shows up here.
var texts = []struct {
	code string
	list []string
}{
	{"", []string{
		"OK", "compacted revision ", "SUCCESS", "FAILURE",
		"granted with TTL(60s)", " revoked", "), remaining(", ", attached keys([", " already expired", "found ", " keepalived with TTL(", " expired or revoked.",
		", started, ", ", unstarted, , ", " added to cluster ", " added as learner to cluster ", " removed from cluster ", " updated in cluster ", " promoted in cluster ",
		`ETCD_NAME="`, `ETCD_INITIAL_CLUSTER="`, `ETCD_INITIAL_ADVERTISE_PEER_URLS="`, `ETCD_INITIAL_CLUSTER_STATE="existing"`,
		" is healthy: successfully committed proposal: took = ", "Finished defragmenting etcd member[", "Leadership transferred from ",
		"Snapshot saved at ", "Server version ", "memberID:", "alarm:NOSPACE",
		"Downgrade validate success, cluster version ", "Downgrade enable success, cluster version ", "Downgrade cancel success, cluster version ",
		"Start data scale check for work load [10000 key-value pairs, 1024 bytes per key-value, 50 concurrent clients].",
		"PASS: Approximate system memory used : ", "etcdctl version: 3.7.3", "API version: 3.7",
		"ETCD_LOCK_KEY=", "ETCD_LOCK_REV=",
		"log warn : unrecognized environment variable",
		"Authentication Enabled", "Authentication Disabled", "Authentication Status: ", "Role ", " created", "KV Read:", "KV Write:",
	}},
	{"1", []string{
		"conflicting environment variable is shadowed by corresponding command-line flag",
		`unknown command "frob" for "etcdctl"`, "etcdserver: permission denied", "context deadline exceeded", "rpc error: code = Internal desc = a text that no client knows",
		"failed to revoke lease (etcdserver: requested lease not found)", "failed to grant lease (",
		"unhealthy cluster", " is unhealthy: failed to commit proposal: Active Alarm(s): NOSPACE ",
		"Failed to get the hash of endpoint ", "Failed to defragment etcd member[", "command [\"false\"] error (exit status 1)",
		"session expired", "elect: session expired", "elect: observer lost", "etcdserver: bad leader transferee",
	}},
	{"2", []string{"etcdserver: authentication failed, invalid user ID or password", "etcdserver: requested lease not found"}},
	{"3", []string{"malformed comparison: ", "invalid txn request: ", "error reading watch request line: EOF", "has keys. Delete with ",
		"Invalid command frob (only support watch)", "progress notify: "}},
	{"4", []string{"table not supported as output format", "fields not supported as output format", "unsupported output format",
		"bad sort order ", "bad sort target ", "unknown consistency flag ", "unknown load option "}},
	{"5", []string{"watch was canceled (etcdserver: mvcc: required revision has been compacted)", "watch is canceled by the server",
		"snapshot must be requested to one selected node, not multiple [",
		"ETCD_WATCH_REVISION=", "ETCD_WATCH_EVENT_TYPE=", "ETCD_WATCH_KEY=", "ETCD_WATCH_VALUE="}},
	{"128", []string{
		"empty string is passed to --cert option",
		"put command needs 1 argument and input from stdin or 2 arguments", "bad lease ID (", "put command needs only 1 argument when 'ignore-value' is set",
		"--count-only is only for `--write-out=fields`", "print-value-only is only for `--write-out=simple`",
		"`--prefix` and `--from-key` cannot be set at the same time, choose one", "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
		"get command needs one argument as key and an optional argument as range_end",
		"txn command does not accept argument", "compaction command needs 1 argument",
		`ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END="`,
		"bad TTL (", "bad lease ID arg (", "lease grant command needs TTL argument",
		"member name not provided", "member peer urls not provided", "too many arguments, did you mean --peer-urls=", "member ID is not provided", "bad member ID arg (",
		"no leader endpoint given at [", "move-leader command needs 1 argument", "TARGET_VERSION not provided",
		"make-mirror takes one destination argument", "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
		"lock takes a lock name argument and an optional command to execute", "no proposal argument but -l not set", "proposal given but -l is set",
		"invalid permission type: ", "--from-key and --prefix flags are mutually exclusive",
	}},
	{"7", []string{"exit status 7"}}, // of a command under a lock
}

func TestTextsAndExitCodes(t *testing.T) {
	printed := map[string]string{} // exit code: what commands printed that ended with it
	for _, pattern := range []string{"testdata/etcdctl/*.txt", "testdata/own/*.txt", "../../compat/tools/testdata/etcdctl37/*.txt"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no transcripts %s (%v)", pattern, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			output, code := "", ""
			for line := range strings.Lines(string(b) + "$ \n") {
				mark, text, _ := strings.Cut(line, " ")
				switch mark {
				case "1|", "2|", `1"`:
					output += text
				case "=":
					code = strings.TrimSpace(text)
				case "$", "finish":
					printed[code] += output
					output, code = "", ""
				}
			}
		}
	}
	for _, row := range texts {
		for _, text := range row.list {
			if !strings.Contains(printed[row.code], text) {
				t.Errorf("no transcript has %q with exit code %q", text, row.code)
			}
		}
	}
}
