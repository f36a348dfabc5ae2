package password

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func TestHashIsBcrypt(t *testing.T) {
	ctx := context.Background()
	for _, password := range []string{"", "x", "pässwörd", "a\x00b", strings.Repeat("long", 18)} {
		for cost := 4; cost < 7; cost++ {
			hash, err := hashPassword(ctx, password, cost, alone)
			if err != nil {
				t.Fatal(err)
			}
			if err := bcrypt.CompareHashAndPassword(hash, []byte(password)); err != nil {
				t.Errorf("%q, cost %d: %s: %v", password, cost, hash, err)
			}
			theirs, err := bcrypt.GenerateFromPassword([]byte(password), cost)
			if err != nil {
				t.Fatal(err)
			}
			for try, want := range map[string]bool{password: true, password + "y": len(password) == 72} {
				if got, err := matchesHash(ctx, theirs, try, alone); got != want || err != nil {
					t.Errorf("%q against the hash of %q: got %v, %v", try, password, got, err)
				}
			}
		}
	}
	if _, err := hashPassword(ctx, strings.Repeat("x", 73), 4, alone); !errors.Is(err, bcrypt.ErrPasswordTooLong) {
		t.Errorf("73 bytes: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := hashPassword(gone, "x", 31, alone); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who is gone: %v", err)
	}
}

// FuzzMatchesHash compares the handling of stored hashes with the library.
func FuzzMatchesHash(f *testing.F) {
	good, err := bcrypt.GenerateFromPassword([]byte("x"), 4)
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range []string{string(good), string(good) + "more", string(good[:59]), "", "$", "$2$04$", "$2y$04$" + string(good[7:]), "$3" + string(good[2:]), "$2a$99" + string(good[6:]), "$\x1ba" + string(good[3:]) + "more"} {
		f.Add([]byte(h), "x")
	}
	f.Fuzz(func(t *testing.T, hash []byte, password string) {
		if cost, _, _, err := splitHash(hash); err == nil && cost > 5 {
			return // takes too long
		}
		if cost, err := bcrypt.Cost(hash); err == nil && cost > 5 {
			return
		}
		got, err := matchesHash(context.Background(), hash, password, alone)
		if err != nil {
			t.Fatal(err)
		}
		if want := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil; got != want {
			t.Fatalf("%q, %q: got %v, want %v", hash, password, got, want)
		}
	})
}

func alone() bool { return false }
