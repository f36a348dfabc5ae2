package utl

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"

	"quorate/internal/ids"
	"quorate/internal/snapshot"
)

// answer is what a command prints, in one of the formats of --write-out.
type answer struct {
	columns []string
	row     []string
	fields  [][2]string // names and values
	json    any
}

func statusAnswer(s snapshot.Status) answer {
	return answer{
		columns: []string{"hash", "revision", "total keys", "total size", "version"},
		row:     []string{fmt.Sprintf("%x", s.Hash), fmt.Sprint(s.Revision), fmt.Sprint(s.TotalKey), humanize.Bytes(uint64(s.TotalSize)), s.Version},
		fields: [][2]string{{"Hash", fmt.Sprint(s.Hash)}, {"Revision", fmt.Sprint(s.Revision)}, {"Keys", fmt.Sprint(s.TotalKey)},
			{"Size", fmt.Sprint(s.TotalSize)}, {"Version", s.Version}},
		json: s,
	}
}

// hashKV is the hash of the records up to a revision.
type hashKV struct {
	Hash            uint32       `json:"hash"`
	HashRevision    ids.Revision `json:"hashRevision"`
	CompactRevision ids.Revision `json:"compactRevision"`
}

func hashAnswer(h hashKV) answer {
	row := []string{fmt.Sprint(h.Hash), fmt.Sprint(h.HashRevision), fmt.Sprint(h.CompactRevision)}
	return answer{
		columns: []string{"hash", "hash revision", "compact revision"},
		row:     row,
		fields:  [][2]string{{"Hash", row[0]}, {"Hash revision", row[1]}, {"Compact revision", row[2]}},
		json:    h,
	}
}

var errFormat = &exitErr{code: exitBadFeature, err: errors.New("unsupported output format")}

// checkFormat refuses an unknown format before any work is done.
func (a *app) checkFormat() error {
	switch a.format {
	case "simple", "json", "fields", "table":
		return nil
	case "protobuf":
		return &exitErr{code: exitBadFeature, err: errors.New("protobuf not supported as output format")}
	}
	return errFormat
}

func (a *app) print(x answer) error {
	switch a.format {
	case "json":
		b, err := json.Marshal(x.json)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Stdout, string(b))
	case "fields":
		for _, f := range x.fields {
			fmt.Fprintf(a.Stdout, "%q : %s\n", f[0], f[1])
		}
	case "table":
		t := tablewriter.NewTable(a.Stdout, tablewriter.WithConfig(tablewriter.NewConfigBuilder().WithRowAlignment(tw.AlignRight).Build()))
		t.Header(x.columns)
		if err := t.Append(x.row); err != nil {
			return err
		}
		return t.Render()
	default:
		fmt.Fprintln(a.Stdout, strings.Join(x.row, ", "))
	}
	return nil
}
