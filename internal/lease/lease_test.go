package lease

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
)

var rewrite = flag.Bool("rewrite", false, "write the output of the transcripts into testdata")

// TestTranscripts runs testdata/*.txt: blocks of commands, "----", and what they
// print, separated by blank lines. See world.run for the commands.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(want) && !*rewrite {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func replay(script string) string {
	w := &world{eng: mem.New(), l: New(2, Options{})}
	var out strings.Builder
	for i, block := range strings.Split(strings.TrimSpace(script), "\n\n") {
		cmds, _, _ := strings.Cut(block, "----")
		cmds = strings.TrimRight(cmds, "\n")
		if i > 0 {
			out.WriteString("\n")
		}
		out.WriteString(cmds + "\n")
		if !strings.Contains(block, "----") {
			for _, cmd := range strings.Split(cmds, "\n") {
				w.run(cmd)
			}
			continue
		}
		out.WriteString("----\n")
		for _, cmd := range strings.Split(cmds, "\n") {
			out.WriteString(w.run(cmd))
		}
	}
	return out.String()
}

// world is a lessor, its engine and the time in seconds.
type world struct {
	eng   engine.Engine
	l     *Lessor
	now   time.Duration
	waits []<-chan struct{}
	// clears are the attempts to clear checkpoints, one for each renewal that had to.
	clears []Clearing
}

func at(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }

func (w *world) run(cmd string) string {
	f := strings.Fields(cmd)
	if len(f) == 0 || f[0] == "#" {
		return ""
	}
	num := func(i int) int64 {
		if i >= len(f) {
			return 0
		}
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	dur := func(i int) time.Duration {
		d, err := time.ParseDuration(f[i])
		if err != nil {
			panic(err)
		}
		return d
	}
	now := at(w.now)
	b := w.eng.NewBatch()
	defer func() {
		if err := b.Commit(); err != nil {
			panic(err)
		}
	}()
	switch f[0] {
	case "options": // checkpoint interval
		w.l = New(2, Options{Checkpoints: true, CheckpointInterval: dur(1)})
	case "grant": // id ttl
		x, err := w.l.Grant(b, now, ID(num(1)), num(2))
		return result(err, "ttl %d", x.TTL)
	case "revoke":
		keys, err := w.l.Revoke(b, ID(num(1)))
		return result(err, "keys %q", keys)
	case "attach":
		return result(w.l.Attach(ID(num(1)), []byte(f[2])), "")
	case "detach":
		w.l.Detach(ID(num(1)), []byte(f[2]))
	case "keys":
		return fmt.Sprintf("%q exists=%v\n", w.l.Keys(ID(num(1))), w.l.Exists(ID(num(1))))
	case "checkpoint", "persist": // id remaining
		w.l.Checkpoint(b, Checkpoint{ID(num(1)), num(2)}, f[0] == "persist")
	case "promote": // extend
		w.l.Promote(now, dur(1))
	case "demote":
		w.l.Demote()
	case "advance":
		w.now += dur(1)
	case "renew":
		r, err := w.l.Renew(now, ID(num(1)))
		switch {
		case r.Wait != nil:
			w.waits = append(w.waits, r.Wait)
			return "wait\n"
		case r.Reset:
			c, _ := w.l.Clear(ID(num(1)))
			w.clears = append(w.clears, c)
			return fmt.Sprintf("reset the checkpoint: %d\n", len(w.clears))
		}
		return result(err, "ttl %d", r.TTL)
	case "cleared": // number of the reset, whose checkpoint of 0 is applied
		if int(num(1)) > len(w.clears) {
			return "no such reset\n"
		}
		w.l.Cleared(w.clears[num(1)-1])
	case "waits": // which waits are over
		var out strings.Builder
		for _, c := range w.waits {
			select {
			case <-c:
				out.WriteString("over\n")
			default:
				out.WriteString("waiting\n")
			}
		}
		return out.String()
	case "ttl": // id
		st, err := w.l.TimeToLive(now, ID(num(1)), true)
		return result(err, "ttl %d of %d, keys %q", st.TTL, st.GrantedTTL, st.Keys)
	case "list":
		return fmt.Sprintf("%d\n", w.l.List())
	case "expired": // limit
		return fmt.Sprintf("%d\n", w.l.Expired(now, int(num(1))))
	case "due":
		return fmt.Sprintf("%d\n", w.l.CheckpointsDue(now))
	case "nextevent":
		t, ok := w.l.nextEvent()
		if !ok {
			return "never\n"
		}
		return fmt.Sprintln(t.Sub(now))
	case "restart": // minimum TTL
		w.l = New(num(1), w.l.o)
		return result(w.l.Load(w.eng), "%d leases", w.l.Len())
	case "record": // raw bytes of a lease record
		k := recordKey(ID(num(1)))
		v, err := w.eng.Get(nil, engine.Lease.K(k[:]))
		return result(err, "%x", v)
	default:
		return "unknown command\n"
	}
	return ""
}

func result(err error, format string, args ...any) string {
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if format == "" {
		return ""
	}
	return fmt.Sprintf(format, args...) + "\n"
}

// TestRecordBytes compares records with the protobuf library, through a message
// of etcd's API whose first three fields are int64 in fields of the same numbers.
func TestRecordBytes(t *testing.T) {
	for _, x := range []Lease{{1, 2, 0}, {math.MaxInt64, MaxTTL, 300}, {-5, 60, -1}, {7, 0, 0}} {
		got := appendRecord(nil, x)
		m := &etcdserverpb.LeaseGrantRequest{TTL: int64(x.ID), ID: x.TTL} // TTL = 1, ID = 2
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if x.RemainingTTL != 0 {
			want = protowire.AppendVarint(protowire.AppendTag(want, 3, protowire.VarintType), uint64(x.RemainingTTL))
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%v: got %x, want %x", x, got, want)
		}
		k := recordKey(x.ID)
		if back, err := decodeRecord(k[:], got); err != nil || back != x {
			t.Errorf("%v decodes as %v, %v", x, back, err)
		}
	}
}

func TestLoadCorrupt(t *testing.T) {
	good := appendRecord(nil, Lease{ID: 1, TTL: 10})
	for _, c := range []struct {
		name, key string
		value     []byte
	}{
		{"short key", "abc", good},
		{"no id", "\x00\x00\x00\x00\x00\x00\x00\x01", nil},
		{"cut", "\x00\x00\x00\x00\x00\x00\x00\x01", good[:1]},
		{"another lease", "\x00\x00\x00\x00\x00\x00\x00\x02", good},
		{"too long a TTL", "\x00\x00\x00\x00\x00\x00\x00\x01", appendRecord(nil, Lease{ID: 1, TTL: MaxTTL + 1})},
	} {
		eng := mem.New()
		b := eng.NewBatch()
		b.Set(engine.Lease.K([]byte(c.key)), c.value)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		err := New(2, Options{}).Load(eng)
		var corrupt *engine.CorruptionError
		if !errors.As(err, &corrupt) || corrupt.File != fmt.Sprintf("lease record %x", c.key) {
			t.Errorf("%s: got %v, want a corruption that names the key", c.name, err)
		}
	}
}

// TestPileUp promotes with very many leases of one TTL: no second may contain more
// expiries than the rate, no lease may expire early, and below pileUp none is delayed.
func TestPileUp(t *testing.T) {
	for _, n := range []int{pileUp - 1, pileUp, 4000} {
		l := New(2, Options{})
		eng := mem.New()
		b := eng.NewBatch()
		for id := 1; id <= n; id++ {
			if _, err := l.Grant(b, at(0), ID(id), 10+int64(id%3)); err != nil {
				t.Fatal(err)
			}
		}
		b.Discard()
		l.Promote(at(0), time.Second)
		var ends []time.Time
		for _, x := range l.leases {
			if want := at(time.Second + seconds(x.TTL)); x.expiry.Before(want) {
				t.Fatalf("%d leases: expiry %v is before %v", n, x.expiry, want)
			}
			ends = append(ends, x.expiry)
		}
		slices.SortFunc(ends, time.Time.Compare)
		most := 0
		for i, j := 0, 0; i < len(ends); i++ {
			for ends[i].Sub(ends[j]) >= time.Second {
				j++
			}
			most = max(most, i-j+1)
		}
		if most > spreadRate || n == 4000 && most < spreadRate {
			t.Errorf("%d leases: %d expire within a second, want %d", n, most, spreadRate)
		}
		if last := ends[n-1].Sub(at(13 * time.Second)); n < pileUp && last != 0 {
			t.Errorf("%d leases are spread by %v", n, last)
		}
		// All expire, at most 500 at a time.
		got := 0
		for now := at(0); got < n && now.Before(at(time.Minute)); now = now.Add(500 * time.Millisecond) {
			ids := l.Expired(now, 1000)
			if len(ids) > MaxExpired {
				t.Fatalf("%d at once", len(ids))
			}
			for _, id := range ids {
				if _, err := l.Revoke(eng.NewBatch(), id); err != nil {
					t.Fatal(err)
				}
			}
			got += len(ids)
		}
		if got != n {
			t.Errorf("%d of %d leases expired", got, n)
		}
	}
}

// TestCheckpointBatch checks the bound of a batch.
func TestCheckpointBatch(t *testing.T) {
	l := New(2, Options{Checkpoints: true, CheckpointInterval: time.Minute})
	b := mem.New().NewBatch()
	l.Promote(at(0), 0)
	for id := int64(1); id <= 2500; id++ {
		if _, err := l.Grant(b, at(0), ID(id), 3600); err != nil {
			t.Fatal(err)
		}
	}
	var sizes []int
	for {
		due := l.CheckpointsDue(at(time.Minute))
		if len(due) == 0 {
			break
		}
		sizes = append(sizes, len(due))
	}
	if want := []int{1000, 1000, 500}; !slices.Equal(sizes, want) {
		t.Errorf("batches of %v, want %v", sizes, want)
	}
}

// TestModel compares expiry, order and records with a plain list.
func TestModel(t *testing.T) {
	for seed := range int64(30) {
		r := rand.New(rand.NewSource(seed))
		eng := mem.New()
		l := New(2, Options{})
		l.Promote(at(0), 0)
		type grant struct {
			ttl  int64
			end  time.Time
			wake time.Time
			keys map[string]bool
		}
		want := map[ID]*grant{}
		now := at(0)
		for range 400 {
			id := ID(1 + r.Int63n(20))
			g := want[id]
			b := eng.NewBatch()
			switch r.Intn(7) {
			case 0:
				ttl := r.Int63n(30)
				_, err := l.Grant(b, now, id, ttl)
				if (g != nil) != errors.Is(err, ErrLeaseExists) {
					t.Fatalf("seed %d: grant %d: %v", seed, id, err)
				}
				if g == nil {
					end := now.Add(seconds(max(ttl, 2)))
					want[id] = &grant{max(ttl, 2), end, end, map[string]bool{}}
				}
			case 1:
				res, err := l.Renew(now, id)
				switch {
				case g == nil:
					if !errors.Is(err, ErrLeaseNotFound) {
						t.Fatalf("seed %d: renew: %v", seed, err)
					}
				case !now.Before(g.end):
					if res.Wait == nil {
						t.Fatalf("seed %d: renewed an expired lease", seed)
					}
				case res.TTL != g.ttl:
					t.Fatalf("seed %d: renewed to %d, want %d", seed, res.TTL, g.ttl)
				default:
					g.end = now.Add(seconds(g.ttl))
					g.wake = g.end
				}
			case 2, 3:
				key := fmt.Sprint("k", r.Intn(15))
				if g == nil {
					break
				}
				if g.keys[key] && r.Intn(2) == 0 {
					l.Detach(id, []byte(key))
					delete(g.keys, key)
				} else if err := l.Attach(id, []byte(key)); err != nil {
					t.Fatal(err)
				} else {
					g.keys[key] = true
				}
			case 4:
				now = now.Add(time.Duration(r.Intn(5000)) * time.Millisecond)
			case 5:
				var due []ID
				for id, g := range want {
					if !now.Before(g.wake) {
						due = append(due, id)
					}
				}
				slices.SortFunc(due, func(a, b ID) int {
					if c := want[a].wake.Compare(want[b].wake); c != 0 {
						return c
					}
					return int(a - b)
				})
				limit := 1 + r.Intn(4)
				due = due[:min(limit, len(due))]
				if got := l.Expired(now, limit); !slices.Equal(got, due) {
					t.Fatalf("seed %d: expired %v, want %v", seed, got, due)
				}
				for _, id := range due {
					want[id].wake = now.Add(defaultRetryInterval)
				}
			case 6:
				if g == nil {
					break
				}
				keys, err := l.Revoke(b, id)
				if err != nil || len(keys) != len(g.keys) || !slices.IsSortedFunc(keys, bytes.Compare) {
					t.Fatalf("seed %d: revoke %d: %q %v, want %v", seed, id, keys, err, g.keys)
				}
				for _, k := range keys {
					if !g.keys[string(k)] {
						t.Fatalf("seed %d: key %q was not attached", seed, k)
					}
				}
				delete(want, id)
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			again := New(2, Options{})
			if err := again.Load(eng); err != nil || again.Len() != len(want) {
				t.Fatalf("seed %d: %d records, want %d: %v", seed, again.Len(), len(want), err)
			}
		}
		if l.Len() != len(want) {
			t.Fatalf("seed %d: %d leases, want %d", seed, l.Len(), len(want))
		}
	}
}

// TestConcurrent renews and queries leases during apply, for the race detector.
func TestConcurrent(t *testing.T) {
	eng := mem.New()
	l := New(2, Options{Checkpoints: true, CheckpointInterval: time.Second})
	l.Promote(at(0), 0)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				now := at(time.Duration(i) * time.Millisecond)
				id := int64(1 + i%10)
				if r, err := l.Renew(now, ID(id)); err == nil && r.Wait != nil {
					<-r.Wait
				}
				l.TimeToLive(now, ID(id), true)
				l.List()
				l.Expired(now, 10)
				l.CheckpointsDue(now)
				l.nextEvent()
			}
		})
	}
	for i := range 3000 {
		b := eng.NewBatch()
		id := int64(1 + i%10)
		l.Grant(b, at(0), ID(id), 5)
		l.Attach(ID(id), []byte{byte(i)})
		l.Checkpoint(b, Checkpoint{ID(id), 3}, true)
		l.Detach(ID(id), []byte{byte(i)})
		if i%3 == 0 {
			l.Revoke(b, ID(id))
		}
		if i%100 == 0 {
			l.Demote()
			l.Promote(at(0), 0)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	l.Demote() // ends the waits
	wg.Wait()
}

func TestAttachAllocations(t *testing.T) {
	l := New(2, Options{})
	if _, err := l.Grant(mem.New().NewBatch(), at(0), 1, 10); err != nil {
		t.Fatal(err)
	}
	key := []byte("key")
	if n := testing.AllocsPerRun(100, func() { l.Attach(1, key) }); n != 0 {
		t.Errorf("attaching again allocates %v times, want 0", n)
	}
	if n := testing.AllocsPerRun(100, func() { l.Detach(0, key) }); n != 0 {
		t.Errorf("detaching from no lease allocates %v times, want 0", n)
	}
}

// FuzzDecodeRecord decodes arbitrary records; an accepted record encodes to bytes that
// decode to the same lease.
func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1}, appendRecord(nil, Lease{ID: 1, TTL: 60}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9}, appendRecord(nil, Lease{ID: 9, TTL: 60, RemainingTTL: 7}))
	f.Add([]byte("x"), []byte{0xff})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		x, err := decodeRecord(key, value)
		if err != nil {
			return
		}
		if back, err := decodeRecord(key, appendRecord(nil, x)); err != nil || back != x {
			t.Errorf("%v came back as %v, %v", x, back, err)
		}
	})
}

// nextEvent returns when Expired or CheckpointsDue next returns something if nothing
// changes until then.
func (l *Lessor) nextEvent() (at time.Time, ok bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.wakes.items) > 0 {
		at, ok = l.wakes.items[0].wake, true
	}
	if len(l.dues.items) > 0 {
		if due := l.dues.items[0].due; !ok || due.Before(at) {
			at, ok = due, true
		}
	}
	return at, ok
}
