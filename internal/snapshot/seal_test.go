package snapshot

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"quorate/internal/engine/mem"
)

// A bit that flips while a database is sent is detected; a flip within the name of the seal
// leaves the database intact. A database of etcd, which has no seal, passes.
func TestSeal(t *testing.T) {
	eng := mem.New()
	fill(t, eng, rand.New(rand.NewPCG(3, 3)), 200)
	i, err := Measure(t.Context(), eng, Options{Sealed: true, PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	if err := i.WriteTo(t.Context(), &sealed); err != nil {
		t.Fatal(err)
	}
	if got := int64(sealed.Len()); got != i.Size()+int64(sealBytes) {
		t.Fatalf("%d bytes, want %d and a seal", got, i.Size())
	}
	plain := sealed.Bytes()[:i.Size()]
	for _, b := range [][]byte{sealed.Bytes(), plain, nil, []byte("short")} {
		for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
			if got, err := io.ReadAll(CheckSeal(r)); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes: %d were read, %v", len(b), len(got), err)
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	const flips = 3000
	inName := 0
	for range flips {
		b := sealed.Bytes()
		at, bit := rng.IntN(len(b)), byte(1)<<rng.IntN(8)
		b[at] ^= bit
		_, err := io.ReadAll(CheckSeal(bytes.NewReader(b)))
		b[at] ^= bit
		if at >= len(plain) && at < len(plain)+len(sealMagic) {
			inName++
		} else if !errors.Is(err, ErrSeal) {
			t.Fatalf("byte %d of %d changed by %#x: %v", at, len(b), bit, err)
		}
	}
	t.Logf("%d flips were detected, %d changed the name of the seal", flips-inName, inName)
}
