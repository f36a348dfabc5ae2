package ctl

import (
	"io"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// tablePrinter draws tables of members and endpoints.
type tablePrinter struct {
	forward
	w io.Writer
}

func (p *tablePrinter) memberList(r *clientv3.MemberListResponse) error {
	return p.draw(memberColumns, memberRows(r))
}

func (p *tablePrinter) endpointHealth(l []endpointHealth) error {
	return p.draw(endpointHealthColumns, endpointHealthRows(l))
}

func (p *tablePrinter) endpointStatus(l []endpointStatus) error {
	return p.draw(endpointStatusColumns, endpointStatusRows(l))
}

func (p *tablePrinter) endpointHashKV(l []endpointHashKV) error {
	return p.draw(endpointHashKVColumns, endpointHashKVRows(l))
}

func (p *tablePrinter) draw(columns []string, rows [][]string) error {
	cfg := tablewriter.NewConfigBuilder().WithRowAlignment(tw.AlignRight).Build()
	t := tablewriter.NewTable(p.w, tablewriter.WithConfig(cfg))
	t.Header(columns)
	if err := t.Bulk(rows); err != nil {
		return err
	}
	return t.Render()
}
