package kubernetes

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"quorate/compat/child"
)

const (
	perKind   = 3  // writers of each kind
	objects   = 10 // of each writer
	eventsOld = 40 // events written before the faults
)

func TestWatchCache(t *testing.T)   { lane(t, *etcd, true) }
func TestNoWatchCache(t *testing.T) { lane(t, *etcd, false) }

// The same with real etcd, for the figures.
func TestRealWatchCache(t *testing.T)   { comparison(t, true) }
func TestRealNoWatchCache(t *testing.T) { comparison(t, false) }

func comparison(t *testing.T, cache bool) {
	if !*compare {
		t.Skip("only with -compare: it judges real etcd")
	}
	lane(t, *realEtcd, cache)
}

// lane is one run: load, faults under load, a new apiserver, and the state found then.
func lane(t *testing.T, program string, cache bool) {
	if !child.Isolated(t, *required) {
		return
	}
	s := newStore(t, program, child.NewMachines(t, size))
	c := newControl(s, "--watch-cache="+strconv.FormatBool(cache))
	defer c.saveLogs()
	j := &journey{control: c}
	if cache {
		j.relists = 1 // the cache of a new apiserver begins with the state it finds
	}
	j.prepare()
	j.load()
	j.complaints("before the faults")
	first := c.mustList(kinds[0], metav1.ListOptions{})
	j.begin()
	j.faults()
	j.again()
	j.rest()
	c.forgets(kinds[0], first.revision)
	j.expired()
	j.members()
	j.report()
}

// journey is a lane and its state so far.
type journey struct {
	*control
	crew     *crew
	watchers []*watcher
	events   *watcher
	relists  int          // of each watcher, when an apiserver with a watch cache is restarted
	retries  atomic.Int64 // of the load
	figures  []string
}

func (j *journey) note(format string, args ...any) {
	j.figures = append(j.figures, fmt.Sprintf(format, args...))
}

// prepare creates the namespace and the custom resource.
func (j *journey) prepare() {
	j.Helper()
	ctx, cancel := requestContext()
	defer cancel()
	ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace}}}
	_, err := j.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(ctx, ns, metav1.CreateOptions{})
	must(j, err)
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	_, err = j.Resource(crds).Create(ctx, &unstructured.Unstructured{Object: widgets}, metav1.CreateOptions{})
	must(j, err)
	for _, k := range kinds {
		child.Eventually(j, limit, k.resource+" are served", func() error {
			_, err := j.list(k, metav1.ListOptions{})
			return err
		})
	}
}

// begin starts all watchers and writers.
func (j *journey) begin() {
	j.Helper()
	for _, k := range append(slices.Clone(kinds), events) {
		w := newWatcher(j.control, k, j.mustList(k, metav1.ListOptions{}).revision)
		j.Cleanup(w.end)
		j.watchers = append(j.watchers, w)
	}
	j.events = j.watchers[len(kinds)]
	for n := range eventsOld {
		ctx, cancel := requestContext()
		_, err := events.in(j).Create(ctx, events.object(fmt.Sprintf("event-%d", n), "", n), metav1.CreateOptions{})
		cancel()
		must(j, err)
	}
	if got := j.mustList(events, metav1.ListOptions{}); len(got.numbers) != eventsOld {
		j.Errorf("%d events right after %d were written", len(got.numbers), eventsOld)
	}
	j.crew = newCrew(j.control, perKind, objects)
	j.crew.start()
}

// progress waits until that many more writes are acknowledged.
func (j *journey) progress(n int64) {
	j.Helper()
	want := j.crew.acknowledged.Load() + n
	child.Eventually(j, limit, "writes go on", func() error {
		for _, w := range j.watchers {
			if err := w.failed(); err != nil {
				j.Fatal(err)
			}
		}
		if got := j.crew.acknowledged.Load(); got < want {
			return fmt.Errorf("%d of %d acknowledged", got, want)
		}
		return nil
	})
}

// faults stops the members one by one, each in both ways, under load.
func (j *journey) faults() {
	j.Helper()
	j.progress(200)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		for i := 1; i <= size; i++ {
			j.end(i, signal)
			began := time.Now()
			j.progress(100) // with two members
			two := time.Since(began)
			j.store.run(i)
			j.ready(i)
			j.answers()
			j.progress(100)
			j.note("%v of %s: 100 writes with two members in %.1fs", signal, node(i), two.Seconds())
		}
	}
	// Pages of one revision while it is written.
	for _, k := range kinds {
		revision := j.mustList(k, metav1.ListOptions{}).revision
		exact := metav1.ListOptions{ResourceVersion: revision, ResourceVersionMatch: metav1.ResourceVersionMatchExact}
		whole := j.mustList(k, exact)
		exact.Limit = 4
		j.progress(20)
		if d := difference(whole.numbers, j.mustList(k, exact).numbers); d != "" {
			j.Errorf("%s at revision %s, at once and later by pages:\n%s", k.resource, revision, d)
		}
	}
}

// again restarts the apiserver under load.
func (j *journey) again() {
	j.Helper()
	j.control.again()
	j.progress(200)
}

// rest lets the writers finish, and compares the state and the events seen with what they wrote.
func (j *journey) rest() {
	j.Helper()
	for _, err := range j.crew.end() {
		j.Error(err)
	}
	conflicts, unsure := 0, 0
	for _, w := range j.crew.writers {
		conflicts, unsure = conflicts+w.conflicts, unsure+w.unsure
	}
	if conflicts == 0 {
		j.Error("no update was refused for its revision")
	}
	j.note("%d writes acknowledged, %d conflicts, %d of unknown outcome", j.crew.acknowledged.Load(), conflicts, unsure)
	for i, k := range kinds {
		lives := j.crew.lives(k)
		want := expected(lives)
		j.finds(k, want)
		if d := difference(want, j.initial(k)); d != "" {
			j.Errorf("%s as initial events of a watch:\n%s", k.resource, d)
		}
		got := j.stored(k)
		slices.Sort(got)
		if names := sorted(want); !slices.Equal(got, names) {
			j.Errorf("the store has keys of %s\n%q, written were\n%q", k.resource, got, names)
		}
		j.watchers[i].complete(lives, j.relists)
		j.encoded(k, got)
	}
}

func sorted(m map[string]string) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// encoded checks that objects are stored in the format that the apiserver was configured with.
func (j *journey) encoded(k *kind, names []string) {
	j.Helper()
	if len(names) == 0 {
		j.Errorf("no %s are left to look at", k.resource)
		return
	}
	value := j.ctl("get", "--print-value-only", "/registry/"+k.path+"/"+namespace+"/"+names[0])
	if binary := strings.HasPrefix(value, "k8s\x00"); binary != k.binary {
		j.Errorf("%s are stored as protobuf: %v; they begin with %q", k.resource, binary, value[:min(20, len(value))])
	}
}

// expired waits until all events are gone, and their deletion was seen.
func (j *journey) expired() {
	j.Helper()
	child.Eventually(j, limit, "events expire", func() error {
		if got := j.stored(events); len(got) > 0 {
			return fmt.Errorf("%d are left", len(got))
		}
		return nil
	})
	if now := j.mustList(events, metav1.ListOptions{}); len(now.numbers) > 0 {
		j.Errorf("the apiserver still lists %d events, the store has none", len(now.numbers))
	}
	lives := map[string]*life{}
	for n := range eventsOld {
		name, number := fmt.Sprintf("event-%d", n), strconv.Itoa(n)
		lives[name] = &life{name: name, changes: []change{{is: "ADDED", number: number}, {is: "DELETED", number: number}}}
	}
	// Without a watch cache it gets no bookmarks, and a new apiserver may find its revision compacted.
	j.events.complete(lives, 1)
}

// members compares what the members hold at one revision.
func (j *journey) members() {
	j.Helper()
	var hashes []struct {
		HashKV struct {
			Hash            uint32 `json:"hash"`
			CompactRevision int64  `json:"compact_revision"`
			HashRevision    int64  `json:"hash_revision"`
			Header          struct{ Revision int64 }
		}
	}
	child.Eventually(j, limit, "the members hold the same", func() error {
		text := j.ctl("endpoint", "hashkv", "-w", "json")
		if err := json.Unmarshal([]byte(text), &hashes); err != nil || len(hashes) != size {
			j.Fatalf("hashkv: %v: %s", err, text)
		}
		for _, h := range hashes[1:] {
			if h.HashKV != hashes[0].HashKV {
				return fmt.Errorf("%s", text)
			}
		}
		return nil
	})
	if hashes[0].HashKV.CompactRevision <= 0 {
		j.Error("nothing was compacted")
	}
}

func (j *journey) report() {
	j.Helper()
	for _, w := range j.watchers {
		if err := w.failed(); err != nil {
			j.Error(err)
		}
		if j.relists > 0 && w != j.events { // they come from the watch cache, and events have none
			w.bookmarked()
		}
	}
	_, failed := j.etcdRequests()
	j.note("etcd_request_errors_total of the last apiserver: %q", failed)
	for _, w := range j.watchers {
		w.mu.Lock()
		events := 0
		for _, seen := range w.seen {
			events += len(seen)
		}
		j.note("watch of %s: %d events, %d bookmarks, %d streams, %d lists in between", w.resource, events, w.bookmarks, w.streams, w.relists)
		w.mu.Unlock()
	}
	name := filepath.Base(j.program)
	for _, f := range j.figures {
		j.Logf("%s: %s", name, f)
	}
	for _, k := range complaints(j.log()) {
		j.Logf("%s: apiserver's log: %s", name, k)
	}
}
