package logging

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalSocket is the socket of journald.
const journalSocket = "/run/systemd/journal/socket"

// journalWriter sends each line to the journal with the priority of its level, and to
// fallback if that fails.
type journalWriter struct{ fallback io.Writer }

func newJournal(fallback io.Writer) (*journalWriter, error) {
	conn, err := net.Dial("unixgram", journalSocket)
	if err != nil {
		return nil, fmt.Errorf("failed to dial journal: %w", err)
	}
	conn.Close()
	return &journalWriter{fallback: fallback}, nil
}

func (w *journalWriter) Write(line []byte) (int, error) {
	pri, fields := journalFields(line)
	if err := journal.Send(string(bytes.TrimSuffix(line, []byte("\n"))), pri, fields); err != nil {
		return w.fallback.Write(line)
	}
	return len(line), nil
}

// journalFields reads level and caller from a line. A line in console format has neither as
// JSON and is sent as information.
func journalFields(line []byte) (journal.Priority, map[string]string) {
	var head struct{ Level, Caller string }
	fields := map[string]string{"SYSLOG_IDENTIFIER": filepath.Base(os.Args[0])}
	if json.Unmarshal(line, &head) != nil {
		return journal.PriInfo, fields
	}
	fields["PACKAGE"] = filepath.Dir(head.Caller)
	switch head.Level {
	case "debug":
		return journal.PriDebug, fields
	case "warn":
		return journal.PriWarning, fields
	case "error":
		return journal.PriErr, fields
	case "dpanic", "panic", "fatal":
		return journal.PriCrit, fields
	}
	return journal.PriInfo, fields
}
