package kubernetes

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"quorate/compat/child"
)

// relisted is not a change by a writer: it is the state of the object in a list, after the apiserver had refused
// to continue from the watch's revision.
const relisted watch.EventType = "RELISTED"

// watcher follows a kind from a revision on, as a client's reflector does: when a stream ends it opens the next
// at the last revision that it knows, and when that has expired it lists again.
type watcher struct {
	*control
	*kind
	cancel context.CancelFunc
	ended  chan struct{}

	mu        sync.Mutex
	seen      map[string][]change // by object
	revision  uint64              // of the last event or bookmark
	bookmarks int
	streams   int
	relists   int
	expired   bool // the revision has expired, and a list must come next
	fault     error
}

func newWatcher(c *control, k *kind, revision string) *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{control: c, kind: k, cancel: cancel, ended: make(chan struct{}), seen: map[string][]change{}}
	w.revision, w.fault = number(revision)
	go w.follow(ctx)
	return w
}

func number(revision string) (uint64, error) { return strconv.ParseUint(revision, 10, 64) }

func (w *watcher) follow(ctx context.Context) {
	defer close(w.ended)
	for ctx.Err() == nil && w.failed() == nil {
		w.mu.Lock()
		w.streams++
		options := metav1.ListOptions{ResourceVersion: strconv.FormatUint(w.revision, 10), AllowWatchBookmarks: true}
		w.mu.Unlock()
		stream, err := w.in(w).Watch(ctx, options)
		if err != nil {
			time.Sleep(100 * time.Millisecond) // the apiserver is down; retry
			continue
		}
		for e := range stream.ResultChan() {
			w.take(e)
		}
		stream.Stop()
		if w.expires() {
			w.relist(ctx)
		}
	}
}

// together reports whether such changes may share a revision: the objects of one lease are deleted together.
func (w *watcher) together(is watch.EventType) bool { return w.kind == events && is == watch.Deleted }

func (w *watcher) expires() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.expired
}

// relist continues from the current state.
func (w *watcher) relist(ctx context.Context) {
	for ctx.Err() == nil {
		all, err := w.list(w.kind, metav1.ListOptions{})
		if err != nil {
			time.Sleep(100 * time.Millisecond) // the apiserver is down; retry
			continue
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.relists, w.expired = w.relists+1, false
		w.revision, w.fault = number(all.revision)
		for name := range w.seen {
			w.seen[name] = append(w.seen[name], change{is: relisted, number: all.numbers[name]})
		}
		for name, n := range all.numbers {
			if w.seen[name] == nil {
				w.seen[name] = []change{{is: relisted, number: n}}
			}
		}
		return
	}
}

func (w *watcher) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

func (w *watcher) take(e watch.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault != nil {
		return
	}
	o, ok := e.Object.(*unstructured.Unstructured)
	if status, ok := e.Object.(*metav1.Status); ok && status.Reason == metav1.StatusReasonExpired {
		w.expired = true
		return
	}
	if !ok || e.Type == watch.Error {
		w.fault = fmt.Errorf("watch of %s at %d: %s %v", w.resource, w.revision, e.Type, e.Object)
		return
	}
	revision, err := number(o.GetResourceVersion())
	switch {
	case err != nil:
		w.fault = err
	case e.Type == watch.Bookmark && revision < w.revision:
		w.fault = fmt.Errorf("watch of %s: a bookmark at %d, after %d", w.resource, revision, w.revision)
	case e.Type == watch.Bookmark:
		w.bookmarks++
	case revision < w.revision, revision == w.revision && !w.together(e.Type):
		w.fault = fmt.Errorf("watch of %s: %s %s at %d, after %d", w.resource, e.Type, o.GetName(), revision, w.revision)
	default:
		if w.relists > 0 && w.seen[o.GetName()] == nil {
			w.seen[o.GetName()] = []change{{is: relisted}}
		}
		w.seen[o.GetName()] = append(w.seen[o.GetName()], change{is: e.Type, number: w.number(o), revision: o.GetResourceVersion()})
	}
	w.revision = max(w.revision, revision)
}

func (w *watcher) end() {
	w.cancel()
	<-w.ended
}

// complete waits until what was seen matches what was written: each acknowledged change once and in order, and
// nothing that was never written, with at most the given number of lists in between.
func (w *watcher) complete(lives map[string]*life, relists int) {
	w.Helper()
	child.Eventually(w, limit, "the watch of "+w.resource+" is complete", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.fault != nil {
			w.Fatal(w.fault)
		}
		return w.compare(lives, relists)
	})
}

func (w *watcher) compare(lives map[string]*life, relists int) error {
	if w.relists > relists {
		return fmt.Errorf("it listed again %d times, not %d", w.relists, relists)
	}
	for name, events := range w.seen {
		if lives[name] == nil {
			return fmt.Errorf("it saw %s, which was never written: %v", name, events)
		}
	}
	for name, l := range lives {
		seen := w.seen[name]
		if seen == nil && w.relists > 0 {
			seen = []change{{is: relisted}}
		}
		if err := matches("", l.changes, seen); err != nil {
			return fmt.Errorf("object %s: %w\nwritten: %+v\nseen: %+v", name, err, l.changes, seen)
		}
	}
	return nil
}

// bookmarked waits until the watch received a bookmark beyond the last change.
func (w *watcher) bookmarked() {
	w.Helper()
	child.Eventually(w, limit, "the watch of "+w.resource+" has a bookmark", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.bookmarks == 0 {
			return fmt.Errorf("it has none at %d", w.revision)
		}
		return nil
	})
}

// matches compares what was written to an object with what was seen from a state on; unacknowledged writes may
// be missing.
func matches(state string, written, seen []change) error {
	if len(seen) > 0 && seen[0].is == relisted {
		return skips(state, seen[0].number, written, seen[1:])
	}
	if len(written) == 0 {
		if len(seen) > 0 {
			return fmt.Errorf("%s of %s was not written, or arrived before", seen[0].is, seen[0].number)
		}
		return nil
	}
	c := written[0]
	var err error
	switch {
	case len(seen) == 0:
		err = fmt.Errorf("%s of %s did not come", c.is, c.number)
	case c.is != seen[0].is || c.number != seen[0].number:
		err = fmt.Errorf("%s of %s came, %s of %s was missed", seen[0].is, seen[0].number, c.is, c.number)
	case c.revision != "" && c.revision != seen[0].revision:
		err = fmt.Errorf("%s of %s came with revision %s, the write had %s", c.is, c.number, seen[0].revision, c.revision)
	default:
		err = matches(c.leaves(), written[1:], seen[1:])
	}
	if err != nil && c.unsure { // a retry, which is another write, may have arrived instead
		err = matches(state, written[1:], seen)
	}
	return err
}

// leaves is the version that an object has after a change.
func (c change) leaves() string {
	if c.is == watch.Deleted {
		return ""
	}
	return c.number
}

// skips looks for a point at which the object was what the list showed, and from which on everything matches.
func skips(state, number string, written, seen []change) error {
	err := fmt.Errorf("a list showed %q, a state that it never had after %q", number, state)
	for i := range len(written) + 1 {
		if i > 0 {
			state = written[i-1].leaves()
		}
		if state != number {
			continue
		}
		if err = matches(state, written[i:], seen); err == nil {
			return nil
		}
	}
	return err
}
