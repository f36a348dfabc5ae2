package snapshot

import (
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
)

// etcd's database has no checksum, so one that members of Quorate send each other ends with a
// seal: sealMagic and the CRC-32C of all before it. Every database is a multiple of sealUnit
// long, so a file of etcd cannot be taken for a sealed one. Readers of the database ignore
// bytes after it.
const (
	sealMagic = "QSUM"
	sealBytes = len(sealMagic) + 4
	sealUnit  = 512 // the least page size of bbolt
)

// ErrSeal is returned for a database whose bytes have changed since its sender sealed it.
var ErrSeal = errors.New("snapshot: the database has changed on its way: its checksum is wrong")

// sealWriter sums what is written.
type sealWriter struct {
	w   io.Writer
	sum hash.Hash32
}

func newSealWriter(w io.Writer) *sealWriter { return &sealWriter{w, crc32.New(castagnoli)} }

func (s *sealWriter) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.sum.Write(b[:n])
	return n, err
}

// seal writes the seal.
func (s *sealWriter) seal() error {
	_, err := s.w.Write(binary.BigEndian.AppendUint32([]byte(sealMagic), s.sum.Sum32()))
	return err
}

// CheckSeal returns a reader of r that fails with ErrSeal at the end if r ends with a seal
// that does not fit the bytes before it.
func CheckSeal(r io.Reader) io.Reader { return &sealReader{r: r, sum: crc32.New(castagnoli)} }

type sealReader struct {
	r    io.Reader
	sum  hash.Hash32 // of all but tail
	tail []byte      // the newest sealBytes
	n    int64
}

func (s *sealReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.n += int64(n)
	s.tail = append(s.tail, b[:n]...)
	if out := len(s.tail) - sealBytes; out > 0 {
		s.sum.Write(s.tail[:out])
		s.tail = s.tail[:copy(s.tail, s.tail[out:])]
	}
	if err == io.EOF && s.broken() {
		err = ErrSeal
	}
	return n, err
}

func (s *sealReader) broken() bool {
	return s.n%sealUnit == int64(sealBytes) && string(s.tail[:len(sealMagic)]) == sealMagic &&
		binary.BigEndian.Uint32(s.tail[len(sealMagic):]) != s.sum.Sum32()
}
