package tools

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// rules match what may differ between two runs of the same commands.
var rules = []struct {
	what *regexp.Regexp
	as   string
}{
	// durations
	{regexp.MustCompile(`(took(?:"?:"| = | )|"Took" : )[0-9.]+(?:ns|µs|ms|s)`), "${1}DURATION"},
	{regexp.MustCompile(`(remaining)\(\d+s\)`), "$1(SECONDS)"},
	{regexp.MustCompile(`("ttl":|"TTL" : )\d+(,"granted-ttl":[1-9]|\n"GrantedTTL" : [1-9])`), "${1}SECONDS${2}"},
	{regexp.MustCompile(`"expiration":"[^"]*","ttl":\d+`), `"expiration":"TIME","ttl":SECONDS`},
	{regexp.MustCompile(`(?m)^(TTL: )[1-9]\d*$`), "${1}SECONDS"},
	// the length of an ID that a sentence pads
	{regexp.MustCompile(`\bMember +`), "Member "},
	// sizes of a database and a log
	{regexp.MustCompile(`("(?:dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":)\d+`), "${1}N"},
	{regexp.MustCompile(`("(?:DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex)" : )\d+`), "${1}N"},
	{regexp.MustCompile(`[0-9.]+ [kM]?B,`), "SIZE,"},
	{regexp.MustCompile(` \d+%,`), " N%,"},
	{regexp.MustCompile(`((?:true|false), (?:true|false)), \d+, \d+, \d+,`), "$1, N, N, N,"},
	{regexp.MustCompile(`system memory used : -?[0-9.]+ MB`), "system memory used : N MB"},
	// the number of elections
	{regexp.MustCompile(`("raft_?[tT]erm":)\d+`), "${1}N"},
	{regexp.MustCompile(`("RaftTerm" : )\d+`), "${1}N"},
	// a progress bar
	{regexp.MustCompile(`\d+ / \d+ \[[^\]]*\] +[0-9.]+% [0-9?]+ p/s(?: [0-9ms.]+)?\r?\n?`), ""},
}

// ids are words that may be IDs: of leases, members or clusters.
var ids = regexp.MustCompile(`\b(?:[0-9a-f]{12,16}|[0-9]{16,20})\b`)

// conceal is the inverse of expand, and applies the rules. Names for addresses are padded to the addresses'
// width, for tables.
func (s *stage) conceal(text string) string {
	for i, addr := range s.servers {
		name := fmt.Sprintf("$EP%d", i+1)
		text = strings.ReplaceAll(text, addr, name+strings.Repeat("_", len(addr)-len(name)))
	}
	text = strings.ReplaceAll(text, s.tmp, "$TMP")
	text = ids.ReplaceAllStringFunc(text, func(w string) string {
		if slices.Contains(s.known, w) {
			return w
		}
		base, suffix := 16, ""
		if len(w) > 16 {
			base, suffix = 10, ".decimal"
		}
		id, err := strconv.ParseUint(w, base, 64)
		if err != nil {
			return w
		}
		if s.names[id] == "" {
			s.names[id] = fmt.Sprintf("$id%d", len(s.names)+1)
		}
		return s.names[id] + suffix
	})
	for _, r := range rules {
		text = r.what.ReplaceAllString(text, r.as)
	}
	return text
}

// lines is text in transcript form.
func lines(stream, text string) string {
	if text == "" {
		return ""
	}
	if !strings.HasSuffix(text, "\n") || strings.ContainsFunc(text, func(r rune) bool {
		return r == '\uFFFD' || r < ' ' && r != '\n' && r != '\t' || r == 0x7f
	}) {
		return fmt.Sprintf("%s\" %q\n", stream, text)
	}
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString(stream + "| " + line)
	}
	return out.String()
}

// logs extracts from JSON log lines what does not change between runs. The output of stty, which real tools use
// to hide passwords, is left out.
func logs(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "stty: ") {
			continue
		}
		var l struct{ Level, Logger, Msg string }
		if strings.HasPrefix(line, `{"level"`) && json.Unmarshal([]byte(line), &l) == nil {
			line = fmt.Sprintf("log %s %s: %s\n", l.Level, l.Logger, l.Msg)
		}
		out.WriteString(line)
	}
	return out.String()
}
