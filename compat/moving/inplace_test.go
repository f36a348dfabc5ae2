package moving

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// back hands the directory of a stopped member over to etcd.
func back(t testing.TB, m *harness.Member, args ...string) {
	t.Helper()
	out := done(t, etcdutl, append([]string{"migrate", "--to-etcd", "--data-dir", m.DataDir()}, args...)...)
	if !strings.Contains(out, "store.quorate") {
		t.Errorf("migrate --to-etcd says %q", out)
	}
}

// A directory of each release is taken over in place, after a clean stop and after kill -9, and handed back to
// 3.7.
func TestThereAndBack(t *testing.T) {
	for _, release := range []string{"etcd35", "etcd36", "etcd37"} {
		for _, kill := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/kill=%v", release, kill), func(t *testing.T) {
				t.Parallel()
				var args, where []string
				if kill { // a log elsewhere comes along
					wal := filepath.Join(t.TempDir(), "wal")
					args, where = []string{"--wal-dir=" + wal}, []string{"--wal-dir", wal}
				}
				m := start(t, *binaries[release], args...)
				fill(t, m, 300)
				want := look(t, m, 0)
				end(t, m, kill)
				become(t, m, etcd)
				same(t, "taken over", look(t, m, 0), want)
				log, err := os.ReadFile(m.LogPath())
				must(t, err)
				kept, err := filepath.Glob(filepath.Join(m.DataDir(), "member/snap.etcd-*/db"))
				must(t, err)
				if len(kept) != 1 || !strings.Contains(string(log), filepath.Dir(kept[0])) || !strings.Contains(string(log), `"percent":100`) {
					t.Errorf("etcd's files are kept in %q; log:\n%s", kept, m.LogTail(20))
				}
				c := child.Dial(t, m.ClientAddr())
				_, err = c.PutWithin(limit, "written", "by us")
				must(t, err)
				end(t, m, !kill)
				become(t, m, etcd) // a second start finds nothing to take over
				want = look(t, m, 0)
				end(t, m, kill)
				back(t, m, where...)
				become(t, m, real37)
				same(t, "back on real etcd", look(t, m, 0), want)
				if v, _, err := child.Dial(t, m.ClientAddr()).GetWithin(limit, "written"); v != "by us" {
					t.Errorf("written by us: %q, %v", v, err)
				}
			})
		}
	}
}

// write writes through a member whose cluster may be electing, and returns the revision.
func write(t testing.TB, m *harness.Member, key, value string) (rev int64) {
	t.Helper()
	c := child.Dial(t, m.ClientAddr())
	child.Eventually(t, limit, m.Name()+" writes", func() error {
		r, err := c.PutWithin(limit, key, value)
		if err == nil {
			rev = r.Header.Revision
		}
		return err
	})
	return rev
}

// hashes compares all members at one revision.
func hashes(t testing.TB, what string, ms []*harness.Member) {
	t.Helper()
	want := look(t, ms[0], write(t, ms[0], "at", what))
	for _, m := range ms[1:] {
		write(t, m, "caught up", m.Name()) // answered once this member has applied it
		same(t, fmt.Sprintf("%s: %s against %s", what, m.Name(), ms[0].Name()), look(t, m, want.Rev), want)
	}
}

// A cluster of three changes in place, member by member, while it serves, and goes back.
func TestClusterInPlace(t *testing.T) {
	for _, releases := range [][]string{{"etcd36", "etcd37", "etcd36"}, {"etcd35", "etcd35", "etcd35"}} {
		t.Run(strings.Join(releases, ","), func(t *testing.T) {
			t.Parallel()
			var programs []string
			for _, r := range releases {
				programs = append(programs, *binaries[r])
			}
			cl, err := harness.StartCluster(withLimit(t), t.TempDir(), programs)
			must(t, err)
			t.Cleanup(cl.Kill)
			fill(t, cl.Members[0], 500)
			for i, m := range cl.Members {
				end(t, m, i == 1)
				write(t, cl.Members[(i+1)%3], "while away", m.Name())
				become(t, m, etcd)
				hashes(t, "with "+m.Name()+" ours", cl.Members)
			}
			for i, m := range cl.Members {
				end(t, m, i == 2)
				write(t, cl.Members[(i+1)%3], "while away", m.Name())
				back(t, m)
				become(t, m, real37)
				hashes(t, "with "+m.Name()+" etcd's again", cl.Members)
			}
		})
	}
}

// What cannot be taken over is refused by name, and the directory stays as it was.
func TestRefused(t *testing.T) {
	t.Parallel()
	m := start(t, real37)
	fill(t, m, 300)
	db := filepath.Join(m.DataDir(), "member/snap/db")
	refused := func(why string, words ...string) {
		t.Helper()
		before := child.Look(t, m.DataDir())
		must(t, m.SetBinary(etcd))
		must(t, m.Restart())
		select {
		case <-m.Exited():
		case <-time.After(limit):
			t.Fatalf("%s: the server runs on:\n%s", why, m.LogTail(20))
		}
		for _, w := range words {
			if !strings.Contains(m.LogTail(3), w) {
				t.Errorf("%s: %q is not in\n%s", why, w, m.LogTail(3))
			}
		}
		if diff := before.Changed(child.Look(t, m.DataDir())); diff != "" {
			t.Errorf("%s: the directory has changed:\n%s", why, diff)
		}
	}
	end(t, m, false)
	whole, err := os.ReadFile(db)
	must(t, err)
	wals, err := filepath.Glob(filepath.Join(m.DataDir(), "member/wal/*.wal"))
	must(t, err)
	log, err := os.ReadFile(wals[0])
	must(t, err)

	damage := func(path string, whole []byte, at int) {
		t.Helper()
		b := append([]byte(nil), whole...)
		for i := range 64 {
			b[at+i] ^= 0x5a
		}
		must(t, os.WriteFile(path, b, 0o600))
	}
	must(t, os.WriteFile(db, whole[:4*4096], 0o600))
	refused("a store that is cut off", db, "nothing has been changed")
	damage(db, append(append([]byte(nil), make([]byte, 8192)...), whole[8192:]...), 0)
	refused("a store without a head", db, "no valid meta page")
	must(t, os.WriteFile(db, whole, 0o600))
	damage(wals[0], log, 4096)
	refused("a damaged log", wals[0], "corrupt")
	must(t, os.WriteFile(wals[0], log, 0o600))

	// etcd 3.8 does not exist yet; a byte of its version does.
	i := strings.LastIndex(string(whole), "storageVersion3.7.0")
	if i < 0 {
		t.Fatal("the store has no storage version")
	}
	newer := strings.ReplaceAll(string(whole), "storageVersion3.7.0", "storageVersion3.8.0")
	must(t, os.WriteFile(db, []byte(newer), 0o600))
	refused("a newer store", db, "3.8.0")
	must(t, os.WriteFile(db, whole, 0o600))

	must(t, m.SetBinary(real37))
	must(t, m.Restart())
	must(t, m.WaitReady(withLimit(t)))
	// It waits for the lock, as etcd does, and says so at once.
	p := child.Start(t, child.Config{Program: etcd, Dir: t.TempDir() + "/waits", Args: []string{"--data-dir=" + m.DataDir(),
		"--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:0", "--listen-peer-urls=http://127.0.0.1:0"}})
	child.Eventually(t, limit, "it names the running etcd", func() error {
		if !strings.Contains(p.Output(), "is etcd still running on it?") {
			return errors.New(p.Output())
		}
		return nil
	})
	if !p.Running() {
		t.Errorf("on a running etcd it does not wait:\n%s", p.Output())
	}
	p.Signal(syscall.SIGKILL)
	<-p.Exited()
	end(t, m, false)
	become(t, m, etcd) // intact again
}

// Whenever the process is killed during a take-over or a hand-over, the next attempt produces the same data.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	m := start(t, real36)
	fill(t, m, 4000)
	want := look(t, m, 0)
	end(t, m, true)
	must(t, m.SetBinary(etcd))
	store := filepath.Join(m.DataDir(), "member/STORE")
	for after := 10 * time.Millisecond; ; after += after/4 + time.Millisecond {
		must(t, m.Restart())
		select {
		case <-time.After(after):
		case <-m.Exited():
			t.Fatalf("ended by itself:\n%s", m.LogTail(10))
		}
		must(t, m.Kill())
		if b, err := os.ReadFile(store); err == nil && !strings.Contains(string(b), "put-aside") {
			break // it is complete
		}
	}
	become(t, m, etcd)
	same(t, "taken over", look(t, m, 0), want)
	end(t, m, true)
	for after := 5 * time.Millisecond; ; after += after/4 + time.Millisecond {
		p := child.Start(t, child.Config{Program: etcdutl, Args: []string{"migrate", "--to-etcd", "--data-dir", m.DataDir()}, Dir: t.TempDir()})
		select {
		case <-time.After(after):
		case <-p.Exited():
		}
		p.Kill()
		p.Wait(t, limit)
		if _, err := os.Stat(store); err != nil { // STORE goes last
			break
		}
	}
	become(t, m, real37)
	same(t, "handed back", look(t, m, 0), want)
}

// The measured move there and back.
func TestMeasured(t *testing.T) {
	m := start(t, real37, "--quota-backend-bytes=8589934592", "--snapshot-count=100000")
	began := time.Now()
	fill(t, m, *keysFlag)
	want := look(t, m, 0)
	t.Logf("%d keys written to real etcd in %v", *keysFlag, time.Since(began).Round(time.Millisecond))
	end(t, m, true)
	db, err := os.Stat(filepath.Join(m.DataDir(), "member/snap/db"))
	must(t, err)

	began = time.Now()
	become(t, m, etcd)
	took := time.Since(began)
	mem, err := m.Memory()
	must(t, err)
	t.Logf("taken over, %d MB, and ready: %v, peak RSS %d MB", db.Size()>>20, took.Round(time.Millisecond), mem.Peak>>20)
	same(t, "taken over", look(t, m, 0), want)
	end(t, m, false)

	began = time.Now()
	p := child.Start(t, child.Config{Program: etcdutl, Args: []string{"migrate", "--to-etcd", "--data-dir", m.DataDir()}, Dir: t.TempDir()})
	if code := p.Wait(t, 10*limit); code != 0 {
		t.Fatalf("code %d:\n%s", code, p.Output())
	}
	t.Logf("handed back: %v, peak RSS %d MB", time.Since(began).Round(time.Millisecond), p.PeakMemory()>>20)
	began = time.Now()
	become(t, m, real37)
	t.Logf("real etcd ready: %v", time.Since(began).Round(time.Millisecond))
	same(t, "back on real etcd", look(t, m, 0), want)
}
