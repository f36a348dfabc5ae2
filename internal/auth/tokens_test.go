package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

func TestSimpleTokens(t *testing.T) {
	b := newBench(t)
	if _, err := b.Authenticate(Root, "abc", 9, noon); !errors.Is(err, ErrAuthNotEnabled) {
		t.Errorf("while off: %v", err)
	}
	b.enable()
	b.user("u")
	if _, err := b.Authenticate("nobody", "abc", 9, noon); !errors.Is(err, ErrAuthFailed) {
		t.Errorf("unknown user: %v", err)
	}
	get := func(user, prefix string, index ids.Index) string {
		t.Helper()
		token, err := b.Authenticate(user, prefix, index, noon)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	root, u, later := get(Root, "abc", 42), get("u", "abc", 43), get("u", "xyz", 44)
	if root != "abc.41" {
		t.Errorf("got token %q, want abc.41: the index of the entry before", root)
	}
	if index, ok := Index(root); !ok || index != 41 {
		t.Errorf("index of %s: %d %v", root, index, ok)
	}
	if who, ok := b.Tokens().Resolve(u, 7, noon); !ok || who != (Info{"u", 7}) {
		t.Errorf("got %v %v", who, ok)
	}

	// A token in use stays valid, the others expire.
	at := noon
	for range 3 {
		at = at.Add(DefaultTTL * 2 / 3)
		if _, ok := b.Tokens().Resolve(u, 7, at); !ok {
			t.Fatalf("the token in use has ended at %v", at)
		}
	}
	if _, ok := b.Tokens().Resolve(root, 7, at); ok {
		t.Error("a token outlives its TTL")
	}
	b.Tokens().Expire(at)
	if got := b.Tokens().Len(); got != 1 {
		t.Errorf("%d tokens are kept, want 1", got)
	}
	if _, ok := b.Tokens().Resolve(later, 7, at); ok {
		t.Error("a token that was swept is still there")
	}

	// It is dropped when the password changes or the user is deleted.
	b.do(func(x engine.Batch) error {
		return b.UserChangePassword(x, &pb.AuthUserChangePasswordRequest{Name: "u", HashedPassword: "aGFzaA=="})
	}, nil)
	if _, ok := b.Tokens().Resolve(u, 7, at); ok {
		t.Error("a token outlives the password that it was given for")
	}
	u = get("u", "def", 46)
	if _, ok := b.Tokens().Resolve(u, 7, noon); !ok {
		t.Error("a new token is not known")
	}
	b.do(func(x engine.Batch) error { return b.UserDelete(x, "u") }, nil)
	if _, ok := b.Tokens().Resolve(u, 7, noon); ok {
		t.Error("a token outlives its user")
	}
	root = get(Root, "new", 50)
	b.do(func(x engine.Batch) error { b.Disable(x); return nil }, nil)
	if _, ok := b.Tokens().Resolve(root, 7, noon); ok {
		t.Error("a token outlives authentication")
	}
}

// An entry that is applied again issues the token that its client already has.
func TestReplayGivesTheSameToken(t *testing.T) {
	b := newBench(t)
	b.enable()
	first, err := b.Authenticate(Root, "abc", 42, noon)
	if err != nil {
		t.Fatal(err)
	}
	again := NewStore(NewSimpleTokens(0)) // as after a restart
	if _, err := again.Load(b.eng); err != nil {
		t.Fatal(err)
	}
	if token, err := again.Authenticate(Root, "abc", 42, noon); token != first || err != nil {
		t.Errorf("got %q, %v, want %q", token, err, first)
	}
}

func TestTokensAreBounded(t *testing.T) {
	const limit = 100
	tokens := NewSimpleTokens(0)
	tokens.limit = limit
	for i := range ids.Index(limit) + 5 {
		if _, err := tokens.assign("u", "x", i+1, noon); err != nil {
			t.Fatal(err)
		}
		tokens.Resolve("x.0", 1, noon) // in use
	}
	if tokens.Len() != limit {
		t.Errorf("%d tokens, want %d", tokens.Len(), limit)
	}
	if _, ok := tokens.Resolve("x.0", 1, noon); !ok {
		t.Error("the token in use was forgotten")
	}
	if _, ok := tokens.Resolve("x.1", 1, noon); ok {
		t.Error("the token that nobody used is still there")
	}
}

// keyFiles creates pairs of keys as the files that the options name.
func keyFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"secret": []byte("a secret of some length, as HMAC wants it"), "junk": []byte("junk")}
	put := func(name string, private any, public any) {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		files[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if der, err = x509.MarshalPKIXPublicKey(public); err != nil {
			t.Fatal(err)
		}
		files[name+".pub"] = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	for _, name := range []string{"rsa", "rsa2"} {
		k, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		put(name, k, k.Public())
	}
	for name, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		put(name, k, k.Public())
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	put("ed", private, public)
	return files
}

func reader(files map[string][]byte) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if b, ok := files[path]; ok {
			return b, nil
		}
		return nil, fs.ErrNotExist
	}
}

func TestSignedTokens(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // small keys, for speed
	files := keyFiles(t)
	make := func(spec string) *Tokens {
		t.Helper()
		tokens, err := NewTokens(TokenOptions{Spec: spec}, reader(files), zap.NewNop())
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		return tokens
	}
	keys := map[string]string{"EdDSA": "ed"}
	for _, bits := range []string{"256", "384"} { // 512 bits of PS need more than 1024 bits of RSA
		keys["RS"+bits], keys["PS"+bits] = "rsa", "rsa"
		keys["ES"+bits], keys["HS"+bits] = "ES"+bits, ""
	}
	keys["RS512"], keys["ES512"], keys["HS512"] = "rsa", "ES512", ""
	other, err := make("jwt,sign-method=HS256,priv-key=junk").Sign("u", 5, noon)
	if err != nil {
		t.Fatal(err)
	}
	for method, key := range keys {
		options := []string{fmt.Sprintf("priv-key=%s.key", key), fmt.Sprintf("pub-key=%[1]s.pub,priv-key=%[1]s.key,ttl=10m", key)}
		if key == "" {
			options = []string{"priv-key=secret,ttl=10m"}
		}
		for _, o := range options {
			tokens := make("jwt,sign-method=" + method + "," + o)
			if !tokens.Signed() || tokens.Simple() {
				t.Errorf("%s: not signed", method)
			}
			token, err := tokens.Sign("ü", 5, noon)
			if err != nil {
				t.Errorf("%s: %v", method, err)
				continue
			}
			ttl := defaultJWTTTL
			if strings.Contains(o, "ttl") {
				ttl = 10 * time.Minute
			}
			if who, ok := tokens.Resolve(token, 9, noon.Add(ttl-2*time.Second)); !ok || who != (Info{"ü", 5}) {
				t.Errorf("%s: got %v %v", method, who, ok)
			}
			if _, ok := tokens.Resolve(token, 9, noon.Add(ttl+time.Second)); ok {
				t.Errorf("%s: the token outlives its time", method)
			}
			if _, ok := tokens.Resolve(token[:len(token)-8]+"AAAAAAAA", 9, noon); ok {
				t.Errorf("%s: a forged signature counts", method)
			}
			if _, ok := tokens.Resolve(other, 9, noon); ok {
				t.Errorf("%s: the token of another key counts", method)
			}
			if key == "" {
				continue
			}
			check := make("jwt,sign-method=" + method + ",pub-key=" + key + ".pub")
			if who, ok := check.Resolve(token, 9, noon); !ok || who.User != "ü" {
				t.Errorf("%s, public key alone: got %v %v", method, who, ok)
			}
			if _, err := check.Sign("u", 1, noon); !errors.Is(err, ErrVerifyOnly) {
				t.Errorf("%s, public key alone: signing gives %v", method, err)
			}
		}
	}
}

// TestClaims checks foreign tokens with the right key and unusual contents.
func TestClaims(t *testing.T) {
	secret := []byte("secret")
	tokens, err := NewTokens(TokenOptions{Spec: "jwt,sign-method=HS256,priv-key=k"}, reader(map[string][]byte{"k": secret}), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		method jwt.SigningMethod
		claims jwt.MapClaims
		want   Info
		ok     bool
	}{
		{"no end", jwt.SigningMethodHS256, jwt.MapClaims{"username": "u", "revision": 3}, Info{"u", 3}, true},
		{"other method", jwt.SigningMethodHS512, jwt.MapClaims{"username": "u", "revision": 3}, Info{}, false},
		{"no user", jwt.SigningMethodHS256, jwt.MapClaims{"revision": 3}, Info{}, false},
		{"user is no text", jwt.SigningMethodHS256, jwt.MapClaims{"username": 7, "revision": 3}, Info{}, false},
		{"no revision", jwt.SigningMethodHS256, jwt.MapClaims{"username": "u"}, Info{}, false},
		{"revision is text", jwt.SigningMethodHS256, jwt.MapClaims{"username": "u", "revision": "3"}, Info{}, false},
		{"revision below zero", jwt.SigningMethodHS256, jwt.MapClaims{"username": "u", "revision": -3}, Info{}, false},
		{"not yet", jwt.SigningMethodHS256, jwt.MapClaims{"username": "u", "revision": 3, "nbf": noon.Add(time.Hour).Unix()}, Info{}, false},
	} {
		text, err := jwt.NewWithClaims(c.method, c.claims).SignedString(secret)
		if err != nil {
			t.Fatal(err)
		}
		if who, ok := tokens.Resolve(text, 1, noon); ok != c.ok || who != c.want {
			t.Errorf("%s: got %v %v, want %v %v", c.name, who, ok, c.want, c.ok)
		}
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"username": "root", "revision": 1}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	if who, ok := tokens.Resolve(none, 1, noon); ok {
		t.Errorf("a token without a signature stands for %v", who)
	}
}

func TestBadOptions(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	files := keyFiles(t)
	for spec, want := range map[string]error{
		"simple":                             nil,
		"":                                   nil,
		"simple,a=b":                         nil,
		"simple,a":                           ErrInvalidAuthOpts,
		"simple,a=b=c":                       ErrInvalidAuthOpts,
		"simple,a=b,a=c":                     ErrInvalidAuthOpts,
		"fancy":                              ErrInvalidAuthOpts,
		"jwt":                                ErrInvalidAuthOpts,
		"jwt,sign-method=XX256":              ErrInvalidAuthOpts,
		"jwt,sign-method=RS256":              ErrMissingKey,
		"jwt,sign-method=HS256,pub-key=junk": ErrMissingKey,
		"jwt,sign-method=RS256,priv-key=no":  ErrInvalidAuthOpts,
		"jwt,sign-method=RS256,priv-key=rsa.key,ttl=soon":             ErrInvalidAuthOpts,
		"jwt,sign-method=RS256,priv-key=rsa.key,pub-key=rsa2.pub":     ErrKeyMismatch,
		"jwt,sign-method=RS256,priv-key=rsa.key,ttl=1h,whatever=true": nil,
		"jwt,sign-method=EdDSA,priv-key=ES256.key":                    jwt.ErrNotEdPrivateKey,
		"jwt,sign-method=ES256,priv-key=ed.key":                       jwt.ErrNotECPrivateKey,
	} {
		if _, err := NewTokens(TokenOptions{Spec: spec}, reader(files), zap.NewNop()); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", spec, err, want)
		}
	}
	if _, err := NewTokens(TokenOptions{Spec: "jwt,sign-method=none"}, reader(files), zap.NewNop()); err == nil {
		t.Error("tokens without a signature were accepted")
	}
}

func FuzzResolve(f *testing.F) {
	simple := NewSimpleTokens(0)
	simple.assign("u", "abc", 2, noon)
	signed, err := NewTokens(TokenOptions{Spec: "jwt,sign-method=HS256,priv-key=k"}, reader(map[string][]byte{"k": []byte("secret")}), zap.NewNop())
	if err != nil {
		f.Fatal(err)
	}
	good, err := signed.Sign("u", 3, noon)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"abc.1", "abc.1.2", ".", "a.18446744073709551616", good, good + ".", "a.b.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		Index(token)
		if _, ok := simple.Resolve(token, 1, noon); ok != (token == "abc.1") {
			t.Fatalf("simple %q: %v", token, ok)
		}
		if who, ok := signed.Resolve(token, 1, noon); ok && who.User != "u" {
			t.Fatalf("signed %q: %v", token, who)
		}
	})
}
