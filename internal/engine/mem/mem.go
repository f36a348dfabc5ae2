// Package mem is the in-memory counterpart of engine/pebble, for the simulator and tests.
//
// In: the calls of package engine. Out: the same results, from an immutable ordered
// tree that each commit replaces. Always true: readers hold a root and are never
// affected by writes; Flush remembers the root that a crash returns to, so Crash
// yields exactly what a power loss may leave.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"quorate/internal/engine"
)

// Engine implements engine.Engine. Safe for concurrent use.
type Engine struct {
	mu          sync.RWMutex
	root        *node // newest committed state
	durable     *node // state of the last Flush
	size        int64 // bytes of keys and values below root
	checkpoints map[string]*node
	closed      bool
}

var _ engine.Engine = (*Engine)(nil)

// New returns an empty engine.
func New() *Engine { return &Engine{checkpoints: map[string]*node{}} }

// Crash returns a new engine with the state of the last Flush: what a power loss
// leaves. The old engine is closed.
func (e *Engine) Crash() *Engine {
	c := e.Durable()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return c
}

// Durable returns what Crash would, and leaves the engine open.
func (e *Engine) Durable() *Engine {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return fromRoot(e.durable, e.checkpoints)
}

// OpenCheckpoint opens what Checkpoint wrote into dir.
func (e *Engine) OpenCheckpoint(dir string) (*Engine, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	root, ok := e.checkpoints[dir]
	if !ok {
		return nil, fmt.Errorf("mem: open checkpoint %s: no such directory", dir)
	}
	return fromRoot(root, map[string]*node{}), nil
}

func fromRoot(root *node, checkpoints map[string]*node) *Engine {
	e := &Engine{root: root, durable: root, checkpoints: checkpoints}
	for n := ceil(root, nil); n != nil; n = above(root, n.key) {
		e.size += int64(len(n.key) + len(n.value))
	}
	return e
}

func (e *Engine) state() (*node, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	return e.root, nil
}

// Get implements engine.Reader.
func (e *Engine) Get(dst, key []byte) ([]byte, error) {
	root, err := e.state()
	if err != nil {
		return dst, err
	}
	return get(root, dst, key)
}

func get(root *node, dst, key []byte) ([]byte, error) {
	n := ceil(root, key)
	if n == nil || !bytes.Equal(n.key, key) {
		return dst, engine.ErrNotFound
	}
	return append(dst, n.value...), nil
}

// NewIter implements engine.Reader.
func (e *Engine) NewIter(lower, upper []byte) (engine.Iterator, error) {
	root, err := e.state()
	if err != nil {
		return nil, err
	}
	return newIter(root, lower, upper), nil
}

// NewSnapshot implements engine.Engine.
func (e *Engine) NewSnapshot() engine.Snapshot {
	root, err := e.state()
	return &snapshot{root: root, err: err}
}

// NewBatch implements engine.Engine.
func (e *Engine) NewBatch() engine.Batch { return &batch{e: e} }

// Flush implements engine.Engine: the current state becomes what a crash leaves.
func (e *Engine) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return engine.ErrClosed
	}
	e.durable = e.root
	return nil
}

// Compact implements engine.Engine; there is nothing to reclaim in memory.
func (e *Engine) Compact(ctx context.Context) error {
	if _, err := e.state(); err != nil {
		return err
	}
	return ctx.Err()
}

// Behind implements engine.Engine.
func (e *Engine) Behind() bool { return false }

// Checkpoint implements engine.Engine; OpenCheckpoint opens the copy.
func (e *Engine) Checkpoint(dir string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return engine.ErrClosed
	}
	if _, ok := e.checkpoints[dir]; ok {
		return fmt.Errorf("mem: checkpoint %s: directory exists", dir)
	}
	e.checkpoints[dir] = e.root
	return nil
}

// Size implements engine.Engine.
func (e *Engine) Size() engine.Size {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return engine.Size{Total: e.size, InUse: e.size}
}

// Close implements engine.Engine. As in Pebble, what was not flushed is lost.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return engine.ErrClosed
	}
	e.closed = true
	return nil
}

type snapshot struct {
	root *node
	err  error
}

func (s *snapshot) Get(dst, key []byte) ([]byte, error) {
	if s.err != nil {
		return dst, s.err
	}
	return get(s.root, dst, key)
}

func (s *snapshot) NewIter(lower, upper []byte) (engine.Iterator, error) {
	if s.err != nil {
		return nil, s.err
	}
	return newIter(s.root, lower, upper), nil
}

func (s *snapshot) Close() error {
	s.root, s.err = nil, engine.ErrClosed
	return nil
}

type opKind byte

const (
	opSet opKind = iota
	opDelete
	opDeleteRange
)

type op struct {
	kind opKind
	a, b []byte
}

// batch collects the operations in order; Commit applies them to the newest root.
type batch struct {
	e    *Engine
	ops  []op
	size int
}

func (b *batch) add(kind opKind, x, y []byte) {
	buf := make([]byte, len(x)+len(y))
	copy(buf, x)
	copy(buf[len(x):], y)
	b.ops = append(b.ops, op{kind, buf[:len(x):len(x)], buf[len(x):]})
	b.size += len(buf) + 3
}

func (b *batch) Set(key, value []byte)           { b.add(opSet, key, value) }
func (b *batch) Delete(key []byte)               { b.add(opDelete, key, nil) }
func (b *batch) DeleteRange(lower, upper []byte) { b.add(opDeleteRange, lower, upper) }
func (b *batch) Len() int                        { return b.size }
func (b *batch) Discard()                        { b.ops = nil }

func (b *batch) Commit() error {
	e := b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return engine.ErrClosed
	}
	root := e.root
	for _, o := range b.ops {
		var gone int64
		switch o.kind {
		case opSet:
			root, gone = remove(root, o.a)
			root = insert(root, &node{key: o.a, value: o.b, prio: priority(o.a)})
			e.size += int64(len(o.a)+len(o.b)) - gone
		case opDelete:
			root, gone = remove(root, o.a)
			e.size -= gone
		case opDeleteRange:
			if bytes.Compare(o.a, o.b) >= 0 {
				continue
			}
			left, rest := split(root, o.a)
			mid, right := split(rest, o.b)
			for n := ceil(mid, nil); n != nil; n = above(mid, n.key) {
				e.size -= int64(len(n.key) + len(n.value))
			}
			root = merge(left, right)
		}
	}
	e.root, b.ops = root, nil
	return nil
}
