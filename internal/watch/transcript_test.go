package watch

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
	"quorate/internal/ids"
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
	w := newWorld(Options{})
	var out strings.Builder
	for i, block := range strings.Split(strings.TrimSpace(script), "\n\n") {
		cmds, _, _ := strings.Cut(block, "----")
		cmds = strings.TrimRight(cmds, "\n")
		if i > 0 {
			out.WriteString("\n")
		}
		out.WriteString(cmds + "\n")
		var res strings.Builder
		for _, cmd := range strings.Split(cmds, "\n") {
			if cmd != "" && !strings.HasPrefix(cmd, "#") {
				res.WriteString(w.run(strings.Fields(cmd)))
			}
		}
		if strings.Contains(block, "----") {
			out.WriteString("----\n" + res.String())
		}
	}
	return out.String()
}

// world is a store, a hub and named streams.
type world struct {
	store   *store
	hub     *Hub
	clk     *clock.Manual
	streams map[string]*Stream
	held    []Event // applied, not yet published
	errs    []string
}

func newWorld(o Options) *world {
	w := &world{store: newStore(), clk: clock.NewManual(time.Unix(0, 0)), streams: make(map[string]*Stream)}
	w.open(o)
	return w
}

func (w *world) open(o Options) {
	o.OnError = func(err error) { w.errs = append(w.errs, err.Error()) }
	w.hub = NewHub(w.store, w.clk, o)
}

func (w *world) run(f []string) string {
	args := make(map[string]string)
	for _, a := range f[1:] {
		k, v, _ := strings.Cut(a, "=")
		args[k] = v
	}
	num := func(key string) int64 {
		n, _ := strconv.ParseInt(args[key], 10, 64)
		return n
	}
	flagged := func(key string) bool { _, ok := args[key]; return ok }
	switch f[0] {
	case "options": // of a new hub: queue, queuebytes, fragment, batch, batchbytes, jitter
		w.open(Options{
			QueueResponses: int(num("queue")), QueueBytes: int(num("queuebytes")),
			FragmentBytes: int(num("fragment")), BatchRevisions: int(num("batch")),
			BatchBytes: int(num("batchbytes")),
			Jitter:     func(int64) int64 { return num("jitter") },
		})
	case "txn", "hold": // k=v puts, k deletes; hold does not publish
		var ops []op
		for _, a := range f[1:] {
			if k, v, ok := strings.Cut(a, "="); ok {
				if n, err := strconv.Atoi(strings.TrimPrefix(v, "x")); err == nil && v[0] == 'x' {
					v = strings.Repeat("x", n) // x100 is a value of 100 bytes
				}
				ops = append(ops, put(k, v))
			} else {
				ops = append(ops, del(k))
			}
		}
		w.held = append(w.held, w.store.apply(ops...)...)
		if f[0] == "txn" {
			w.publish()
		}
	case "publish":
		w.publish()
	case "compact":
		n, _ := strconv.ParseInt(f[1], 10, 64)
		w.store.compactTo(ids.Revision(n))
	case "scanfails":
		w.store.scanErr = errors.New("disk on fire")
	case "scanworks":
		w.store.scanErr = nil
	case "restore": // the store has been replaced by a snapshot of itself
		w.held = nil
		w.hub.Restore(w.store)
	case "advance":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return err.Error() + "\n"
		}
		w.clk.Advance(d)
	case "catchup":
		for w.hub.CatchUp() {
		}
		errs := w.errs
		w.errs = nil
		return lines(errs)
	case "pass":
		return fmt.Sprintln(w.hub.CatchUp())
	case "stream":
		w.streams[f[1]] = w.hub.NewStream(context.Background())
	case "create":
		req := &pb.WatchCreateRequest{
			Key: unquote(args["key"]), RangeEnd: unquote(args["end"]),
			StartRevision: num("start"), WatchId: num("id"),
			PrevKv: flagged("prev"), Fragment: flagged("fragment"), ProgressNotify: flagged("notify"),
		}
		if flagged("noput") {
			req.Filters = append(req.Filters, pb.WatchCreateRequest_NOPUT)
		}
		if flagged("nodelete") {
			req.Filters = append(req.Filters, pb.WatchCreateRequest_NODELETE)
		}
		return printErr(w.streams[f[1]].Create(req))
	case "refuse":
		return printErr(w.streams[f[1]].Refuse(strings.Join(f[2:], " ")))
	case "cancel":
		n, _ := strconv.ParseInt(f[2], 10, 64)
		return printErr(w.streams[f[1]].Cancel(n))
	case "progress":
		return printErr(w.streams[f[1]].Progress())
	case "close":
		w.streams[f[1]].Close()
	case "next": // one response
		return w.next(f[1])
	case "drain": // all responses
		var out strings.Builder
		for {
			s := w.next(f[1])
			if s == "" {
				return out.String()
			}
			out.WriteString(s)
			if strings.HasPrefix(s, "error") {
				return out.String()
			}
		}
	default:
		return "unknown command " + f[0] + "\n"
	}
	return ""
}

func (w *world) publish() {
	w.hub.Publish(w.store.Rev(), w.held)
	w.held = nil
}

func (w *world) next(name string) string {
	r, ok, err := w.streams[name].TryNext()
	if err != nil {
		return printErr(err)
	}
	if !ok {
		return ""
	}
	return name + " " + printResponse(r) + "\n"
}

var testHeader = Header{ClusterID: 1, MemberID: 1 << 63, RaftTerm: 3}

// decode takes the response through its wire form.
func decode(r Response) *pb.WatchResponse {
	wire := r.AppendTo(nil, testHeader)
	m := new(pb.WatchResponse)
	if err := proto.Unmarshal(wire, m); err != nil {
		panic(err)
	}
	if again := mustMarshal(m); !bytes.Equal(again, wire) {
		panic(fmt.Sprintf("not canonical:\n%x\n%x", wire, again))
	}
	if r.Size(testHeader) != len(wire) {
		panic("Size is not the size")
	}
	return m
}

func printResponse(r Response) string {
	m := decode(r)
	var b strings.Builder
	fmt.Fprintf(&b, "w%d rev=%d", m.WatchId, m.Header.Revision)
	for _, f := range []struct {
		name string
		set  bool
	}{{"created", m.Created}, {"canceled", m.Canceled}, {"fragment", m.Fragment}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	if m.CompactRevision != 0 {
		fmt.Fprintf(&b, " compact=%d", m.CompactRevision)
	}
	if m.CancelReason != "" {
		fmt.Fprintf(&b, " reason=%q", m.CancelReason)
	}
	for _, ev := range m.Events {
		fmt.Fprintf(&b, "\n  %v %s", ev.Type, printKV(ev.Kv))
		if ev.PrevKv != nil {
			fmt.Fprintf(&b, " (before: %s)", printKV(ev.PrevKv))
		}
	}
	return b.String()
}

func printKV(kv *mvccpb.KeyValue) string {
	v := string(kv.Value)
	if len(v) > 20 {
		v = fmt.Sprintf("%d bytes", len(v))
	}
	return fmt.Sprintf("%s=%s mod=%d", kv.Key, v, kv.ModRevision)
}

func printErr(err error) string {
	if err == nil {
		return ""
	}
	return "error: " + err.Error() + "\n"
}

func lines(ss []string) string {
	if len(ss) == 0 {
		return ""
	}
	return strings.Join(ss, "\n") + "\n"
}

func unquote(s string) []byte {
	if v, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return []byte(v)
	}
	return []byte(s)
}
