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

// bcrypt is made to take long and cannot be broken off, so a CPU that is at it
// serves nobody else for many milliseconds at a time. Here is the same function
// in steps: after each, some fifty microseconds, it lets others run, and it ends
// with the caller. Provos and Mazières, A Future-Adaptable Password Scheme, 1999.

var bcrypt64 = base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(base64.NoPadding)

const (
	saltBytes   = 16
	saltChars   = 22
	digestBytes = 23 // the last of the 24 bytes has never been used
	digestChars = 31
	checkEvery  = 64 // steps between two looks at the context

	// While others wait for their turn, which is a storm of logins, a hash rests for
	// nearly as long as it works. On a machine of few CPUs the writes of those who are
	// in would otherwise wait for the operating system to take one away from it.
	restEvery = 8
	rest      = 300 * time.Microsecond
)

// errNoHash: the stored value is not a bcrypt hash. No password matches it.
var errNoHash = errors.New("not a bcrypt hash")

// splitHash takes "$2a$10$", salt and digest apart.
func splitHash(hash []byte) (cost int, salt, digest []byte, err error) {
	rest := hash
	if len(rest) < 4 || rest[0] != '$' || rest[1] > '2' { // as the library: versions before ours are taken
		return 0, nil, nil, errNoHash
	}
	rest = rest[2:]
	if rest[0] != '$' { // a letter tells revisions of the format apart
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

// stretch is the digest of a password. crowded tells whether others wait for one.
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

// matchesHash reports whether the password is the one that was hashed.
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

// hashPassword refuses what is longer than the 72 bytes that count.
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
