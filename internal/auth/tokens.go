package auth

import (
	"container/list"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"quorate/internal/ids"
)

const (
	// DefaultTTL is the time after which an unused simple token expires, unless
	// configured otherwise.
	DefaultTTL = 300 * time.Second
	// PrefixLetters is the number of random letters at the start of a simple token.
	PrefixLetters = 16
	// maxTokens bounds the simple tokens of a member. At the bound, the token that has
	// been unused for the longest time is dropped; its user has to log in again.
	maxTokens = 1 << 18
)

// Tokens maps tokens to users. Its methods are safe for concurrent use and do not
// block.
//
// Simple tokens are random and live in memory, until their TTL expires, the password
// changes or the user is deleted. Signed tokens (JWT) live with the client.
// password or with the user. Signed tokens (JWT) live with the client.
type Tokens struct {
	ttl    time.Duration
	limit  int     // of simple tokens
	signer *signer // nil for simple tokens
	none   bool    // the configuration names no kind: no user can log in

	mu    sync.Mutex
	by    map[string]*list.Element // of *simpleToken
	order *list.List               // by expiry: all have the same TTL, so by last use
}

type simpleToken struct {
	text, user string
	expiry     time.Time
}

// NewSimpleTokens returns a Tokens of simple tokens that expire after ttl without
// use; 0 means DefaultTTL.
func NewSimpleTokens(ttl time.Duration) *Tokens {
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	return &Tokens{ttl: ttl, limit: maxTokens, by: map[string]*list.Element{}, order: list.New()}
}

// TokenOptions configures the kind of tokens.
type TokenOptions struct {
	Spec string        // "simple", or "jwt" and comma-separated options; the value of --auth-token
	TTL  time.Duration // of simple tokens; 0 means etcd's default
}

// NewTokens returns the Tokens that o describes. read reads a key file. Invalid
// options are logged in detail; the error has etcd's text.
func NewTokens(o TokenOptions, read func(path string) ([]byte, error), lg *zap.Logger) (*Tokens, error) {
	kind, options, err := splitSpec(o.Spec)
	if err != nil {
		return nil, err
	}
	t := NewSimpleTokens(o.TTL)
	switch kind {
	case "simple":
	case "":
		t.none = true
	case "jwt":
		t.signer, err = newSigner(options, read, lg)
	default:
		err = ErrInvalidAuthOpts
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func splitSpec(spec string) (kind string, options map[string]string, err error) {
	kind, rest, more := strings.Cut(spec, ",")
	options = map[string]string{}
	for more {
		var pair string
		pair, rest, more = strings.Cut(rest, ",")
		name, value, ok := strings.Cut(pair, "=")
		if _, twice := options[name]; !ok || twice || strings.Contains(value, "=") {
			return "", nil, ErrInvalidAuthOpts
		}
		options[name] = value
	}
	return kind, options, nil
}

// Signed reports whether the member that receives a login signs the token, with
// Sign, instead of proposing an entry that issues it.
func (t *Tokens) Signed() bool { return t.signer != nil }

// Simple reports whether tokens start with random letters, which the log entry
// contains.
func (t *Tokens) Simple() bool { return t.signer == nil && !t.none }

// Sign returns a signed token for the user.
func (t *Tokens) Sign(user string, rev uint64, now time.Time) (string, error) {
	return t.signer.sign(user, rev, now)
}

// assign issues the token of a log entry. The number in it is the index of the entry
// before, as members of etcd write it.
func (t *Tokens) assign(user, prefix string, index ids.Index, now time.Time) (string, error) {
	switch {
	case t.none:
		return "", ErrAuthFailed
	case t.signer != nil:
		return "", nil
	}
	text := prefix + "." + strconv.FormatUint(uint64(index-1), 10)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(t.by[text])
	if len(t.by) >= t.limit {
		t.dropLocked(t.order.Front())
	}
	t.by[text] = t.order.PushBack(&simpleToken{text, user, now.Add(t.ttl)})
	return text, nil
}

// Index returns the number in a simple token: a member knows the token once it has
// applied the entry after that index. ok is false if token is not a simple token.
func Index(token string) (index ids.Index, ok bool) {
	_, number, ok := strings.Cut(token, ".")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 64)
	return ids.Index(n), err == nil
}

// Resolve returns the user of a token. A simple token counts as authenticated at
// revision rev, and its TTL starts again; a signed token contains the revision at
// which it was issued.
func (t *Tokens) Resolve(token string, rev uint64, now time.Time) (Info, bool) {
	if t.signer != nil {
		return t.signer.verify(token, now)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.by[token]
	if e == nil {
		return Info{}, false
	}
	s := e.Value.(*simpleToken)
	if now.After(s.expiry) {
		t.dropLocked(e)
		return Info{}, false
	}
	s.expiry = now.Add(t.ttl)
	t.order.MoveToBack(e)
	return Info{User: s.user, Rev: rev}, true
}

// Expire drops the tokens whose TTL is over.
func (t *Tokens) Expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.order.Front(); e != nil && now.After(e.Value.(*simpleToken).expiry); e = t.order.Front() {
		t.dropLocked(e)
	}
}

// Len returns the number of simple tokens.
func (t *Tokens) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.by)
}

func (t *Tokens) dropLocked(e *list.Element) {
	if e != nil {
		delete(t.by, e.Value.(*simpleToken).text)
		t.order.Remove(e)
	}
}

// forget drops the tokens of a user.
func (t *Tokens) forget(user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.order.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*simpleToken).user == user {
			t.dropLocked(e)
		}
		e = next
	}
}

// reset drops all tokens.
func (t *Tokens) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.by)
	t.order.Init()
}
