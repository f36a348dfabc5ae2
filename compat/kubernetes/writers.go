package kubernetes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// change is one write of an object, as a watch must show it.
type change struct {
	is       watch.EventType
	number   string // of the version written, or deleted
	revision string // as returned by the write; unknown for a deletion
	unsure   bool   // the outcome is unknown
}

// life is the history of one object, which one writer changes.
type life struct {
	name    string
	changes []change
	// The current state of the object; number "" while it does not exist.
	number, revision, stale string
}

// writer changes objects of one kind until it is stopped. It knows the outcome of each write before it begins
// the next one of the same object, so its histories are ordered.
type writer struct {
	*control
	*kind
	lives []*life
	dice  *rand.Rand
	next  *atomic.Int64 // the number of the next version, shared by all writers of the kind

	acknowledged *atomic.Int64 // of all writers
	conflicts    int
	unsure       int
	fault        error // violations
}

func newWriter(c *control, k *kind, id, objects int, next, acknowledged *atomic.Int64) *writer {
	w := &writer{control: c, kind: k, dice: rand.New(rand.NewPCG(1, uint64(id))), next: next, acknowledged: acknowledged}
	for i := range objects {
		w.lives = append(w.lives, &life{name: fmt.Sprintf("w%d-%d", id, i)})
	}
	return w
}

// run writes until stop is closed.
func (w *writer) run(stop <-chan struct{}) {
	for w.fault == nil {
		select {
		case <-stop:
			return
		default:
			w.fault = w.step(w.lives[w.dice.IntN(len(w.lives))])
		}
	}
}

func (w *writer) step(l *life) error {
	n := int(w.next.Add(1))
	switch d := w.dice.IntN(20); {
	case l.number == "":
		return w.create(l, n)
	case d < 3:
		return w.remove(l)
	case d < 5 && l.stale != "":
		return w.conflict(l, n)
	default:
		return w.update(l, n, l.revision)
	}
}

func requestContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func (w *writer) create(l *life, n int) error {
	ctx, cancel := requestContext()
	defer cancel()
	o, err := w.in(w).Create(ctx, w.object(l.name, "", n), metav1.CreateOptions{})
	ch := change{is: watch.Added, number: strconv.Itoa(n)}
	if err != nil {
		return w.settle(l, ch, err)
	}
	ch.revision = o.GetResourceVersion()
	w.done(l, ch)
	return nil
}

func (w *writer) update(l *life, n int, revision string) error {
	ctx, cancel := requestContext()
	defer cancel()
	o, err := w.in(w).Update(ctx, w.object(l.name, revision, n), metav1.UpdateOptions{})
	ch := change{is: watch.Modified, number: strconv.Itoa(n)}
	if err != nil {
		return w.settle(l, ch, err)
	}
	ch.revision = o.GetResourceVersion()
	w.done(l, ch)
	return nil
}

func (w *writer) remove(l *life) error {
	ctx, cancel := requestContext()
	defer cancel()
	err := w.in(w).Delete(ctx, l.name, onlyAt(l.revision))
	ch := change{is: watch.Deleted, number: l.number}
	if err != nil {
		return w.settle(l, ch, err)
	}
	w.done(l, ch)
	return nil
}

// conflict updates an object that has changed since; that must be refused.
func (w *writer) conflict(l *life, n int) error {
	ctx, cancel := requestContext()
	defer cancel()
	_, err := w.in(w).Update(ctx, w.object(l.name, l.stale, n), metav1.UpdateOptions{})
	switch {
	case err == nil:
		return fmt.Errorf("%s %s was changed although its revision was %s and no longer %s", w.Kind, l.name, l.revision, l.stale)
	case apierrors.IsConflict(err):
		w.conflicts++
	}
	return nil // any other refusal changed nothing
}

// done records a write that was acknowledged.
func (w *writer) done(l *life, ch change) {
	w.acknowledged.Add(1)
	w.record(l, ch)
}

func (w *writer) record(l *life, ch change) {
	l.changes = append(l.changes, ch)
	if ch.is == watch.Deleted {
		l.number, l.revision, l.stale = "", "", ""
		return
	}
	l.stale, l.number, l.revision = l.revision, ch.number, ch.revision
}

// settle determines the outcome of a write that failed: no effect, by an error that implies it, or what the
// object shows. It may still take effect later, so it stays unsure; every write names the revision that it
// changes, so it cannot take effect after the next one that succeeds.
func (w *writer) settle(l *life, ch change, failure error) error {
	w.unsure++
	ch.unsure = true
	l.changes = append(l.changes, ch)
	deadline := time.Now().Add(limit)
	for {
		ctx, cancel := requestContext()
		o, err := w.in(w).Get(ctx, l.name, metav1.GetOptions{})
		cancel()
		switch {
		case apierrors.IsNotFound(err):
			if l.number != "" && !l.maybe(watch.Deleted, l.number) {
				return fmt.Errorf("%s %s is gone after %s failed: %w", w.Kind, l.name, ch.is, failure)
			}
			l.number, l.revision, l.stale = "", "", ""
			return nil
		case err == nil:
			number := w.number(o)
			if number != l.number && !l.maybe(watch.Added, number) && !l.maybe(watch.Modified, number) {
				return fmt.Errorf("%s %s has version %s, but %q was acknowledged and %s tried: %w", w.Kind, l.name, number, l.number, ch.number, failure)
			}
			l.number, l.revision, l.stale = number, o.GetResourceVersion(), ""
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s %s: %w, and reading it fails: %w", w.Kind, l.name, failure, err)
		}
		time.Sleep(100 * time.Millisecond) // before the apiserver is asked again
	}
}

// maybe reports whether such a change was attempted since the last acknowledged one.
func (l *life) maybe(is watch.EventType, number string) bool {
	for _, c := range slices.Backward(l.changes) {
		if !c.unsure {
			return false
		}
		if c.is == is && c.number == number {
			return true
		}
	}
	return false
}

// crew is all writers of all kinds.
type crew struct {
	writers      []*writer
	acknowledged atomic.Int64
	stop         chan struct{}
	wg           sync.WaitGroup
}

func newCrew(c *control, perKind, objects int) *crew {
	w := &crew{}
	for i, k := range kinds {
		next := &atomic.Int64{}
		for j := range perKind {
			w.writers = append(w.writers, newWriter(c, k, i*perKind+j, objects, next, &w.acknowledged))
		}
	}
	return w
}

func (c *crew) start() {
	c.stop = make(chan struct{})
	for _, w := range c.writers {
		c.wg.Go(func() { w.run(c.stop) })
	}
}

// end stops the writers and returns the violations.
func (c *crew) end() []error {
	close(c.stop)
	c.wg.Wait()
	var faults []error
	for _, w := range c.writers {
		if w.fault != nil {
			faults = append(faults, w.fault)
		}
	}
	return faults
}

// lives are the histories of all objects of a kind.
func (c *crew) lives(k *kind) map[string]*life {
	all := map[string]*life{}
	for _, w := range c.writers {
		if w.kind == k {
			for _, l := range w.lives {
				all[l.name] = l
			}
		}
	}
	return all
}
