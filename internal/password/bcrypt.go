package password

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"quorate/internal/clock"

	"golang.org/x/crypto/bcrypt"
	//lint:ignore SA1019 bcrypt is made of it
	"golang.org/x/crypto/blowfish"
)

// bcrypt is slow by design and cannot be interrupted, so a CPU that computes it serves
// no one else for many milliseconds. This is the same function in steps: after each
// step, some fifty microseconds, it yields to other goroutines, and it stops when the
// caller's context ends. Provos and Mazières, A Future-Adaptable Password Scheme, 1999.

var bcrypt64 = base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(base64.NoPadding)

const (
	saltBytes   = 16
	saltChars   = 22
	digestBytes = 23 // the last of the 24 bytes has never been used
	digestChars = 31
	checkEvery  = 64 // steps between two checks of the context

	// While other calls wait for their turn, as in a storm of logins, a hash sleeps for
	// nearly as long as it computes. On a machine with few CPUs, the writes of users who
	// are logged in would otherwise wait for the operating system to preempt it.
	restEvery = 8
	rest      = 300 * time.Microsecond
)

// errNoHash means that the stored value is not a bcrypt hash. No password matches it.
var errNoHash = errors.New("not a bcrypt hash")

// splitHash splits a hash into "$2a$10$", salt and digest.
func splitHash(hash []byte) (cost int, salt, digest []byte, err error) {
	rest := hash
	if len(rest) < 4 || rest[0] != '$' || rest[1] > '2' { // like the library, accept older versions
		return 0, nil, nil, errNoHash
	}
	rest = rest[2:]
	if rest[0] != '$' { // a letter is the revision of the format
		rest = rest[1:]
	}
	if len(rest) < 1+2+1+saltChars+digestChars {
		return 0, nil, nil, errNoHash
	}
	cost, err = strconv.Atoi(string(rest[1:3]))
	if err != nil || cost < bcrypt.MinCost || cost > bcrypt.MaxCost {
		return 0, nil, nil, errNoHash
	}
	rest = rest[4:]
	salt = make([]byte, saltBytes)
	if _, err := bcrypt64.Decode(salt, rest[:saltChars]); err != nil {
		return 0, nil, nil, errNoHash
	}
	return cost, salt, rest[saltChars:][:digestChars], nil
}

// stretch returns the digest of a password. crowded reports whether other calls wait.
func stretch(ctx context.Context, password string, cost int, salt []byte, crowded func() bool) ([]byte, error) {
	key := append([]byte(password), 0)
	c, err := blowfish.NewSaltedCipher(key, salt)
	if err != nil {
		return nil, err
	}
	for i := range uint64(1) << cost {
		blowfish.ExpandKey(key, c)
		blowfish.ExpandKey(salt, c)
		if i%restEvery == 0 && crowded() {
			clock.Pause(rest)
		} else {
			runtime.Gosched()
		}
		if i%checkEvery == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	text := []byte("OrpheanBeholderScryDoubt")
	for i := 0; i < len(text); i += blowfish.BlockSize {
		block := text[i : i+blowfish.BlockSize]
		for range 64 {
			c.Encrypt(block, block)
		}
	}
	out := make([]byte, digestChars)
	bcrypt64.Encode(out, text[:digestBytes])
	return out, nil
}

// matchesHash reports whether hash is that of the password.
func matchesHash(ctx context.Context, hash []byte, password string, crowded func() bool) (bool, error) {
	cost, salt, want, err := splitHash(hash)
	if err != nil {
		return false, nil
	}
	got, err := stretch(ctx, password, cost, salt, crowded)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

// hashPassword rejects passwords longer than the 72 bytes that bcrypt uses.
func hashPassword(ctx context.Context, password string, cost int, crowded func() bool) ([]byte, error) {
	if len(password) > 72 {
		return nil, bcrypt.ErrPasswordTooLong
	}
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	digest, err := stretch(ctx, password, cost, salt, crowded)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "$2a$%02d$%s%s", cost, bcrypt64.EncodeToString(salt), digest), nil
}
