package failure

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"quorate/compat/child"
)

// A member whose store is damaged is rebuilt from another member by one command, and goes on as the same member. With
// a damaged log the command refuses and says what to do.
func TestRebuildMember(t *testing.T) {
	t.Parallel()
	sites, flags := three(t)
	procs, clients := serveAll(t, etcd, sites, flags)
	for i := range 50 {
		if _, err := clients[0].PutWithin(limit, keyOf(i), valueOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	broken := sites[2]
	procs[2].Signal(syscall.SIGTERM)
	procs[2].Wait(t, limit)
	for i := range 50 {
		if _, err := clients[0].PutWithin(limit, keyOf(50+i), valueOf(50+i)); err != nil {
			t.Fatal(err)
		}
	}
	tables, err := filepath.Glob(filepath.Join(broken.data, "member/store/*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("the store has no tables: %v", err)
	}
	for _, table := range tables {
		flip(t, table, size(t, table)/2)
		flip(t, table, 100)
	}
	p := broken.start(t, etcd, flags[2]...)
	p.Wait(t, limit)
	if out := p.Output(); !strings.Contains(out, "corrupt data in "+filepath.Dir(tables[0])) || !strings.Contains(out, "etcdutl member rebuild") {
		t.Errorf("the log does not name the damaged table and the way out:\n%s", out)
	}
	rebuild := func() (string, error) {
		out, err := exec.Command(etcdutl, "member", "rebuild", "--data-dir", broken.data,
			"--endpoints", fmt.Sprintf("http://%s,http://%s", sites[0].client, sites[1].client)).CombinedOutput()
		return string(out), err
	}
	out, err := rebuild()
	if err != nil || !strings.Contains(out, "is rebuilt; start the member") {
		t.Fatalf("member rebuild: %v\n%s", err, out)
	}
	p = broken.start(t, etcd, flags[2]...)
	c := child.Dial(t, broken.client)
	child.Eventually(t, limit, "the rebuilt member has every key", func() error {
		for i := range 100 {
			v, found, err := c.GetWithin(limit, keyOf(i))
			if err != nil || !found || v != valueOf(i) {
				return fmt.Errorf("%s: found %v, %w", keyOf(i), found, err)
			}
		}
		return nil
	})
	if out, err := rebuild(); err == nil {
		t.Errorf("a running member was rebuilt:\n%s", out)
	}
	p.Kill()
	wal := only(t, filepath.Join(broken.data, "member/wal/*.wal"))
	offsets, _ := frames(t, wal)
	flip(t, wal, offsets[len(offsets)/2]+30)
	if out, err := rebuild(); err == nil || !strings.Contains(out, wal) || !strings.Contains(out, "cannot keep its identity") {
		t.Errorf("with a damaged log: %v\n%s", err, out)
	}
}
