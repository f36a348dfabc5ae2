package digest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"quorate/internal/ids"
)

// Report is what a member sends about its digest: points in ascending order, the first of
// which is where it began, with a digest of zero.
type Report struct {
	Release uint64 // of the records: only reports of one release can be compared
	Member  ids.Member
	Began   ids.Index
	Points  []Point
}

// MaxPoints bounds the points of a report, and MaxReport its encoding in bytes.
const (
	MaxPoints = fineKept + middleKept + coarseKept + 2
	MaxReport = 64 + MaxPoints*(binary.MaxVarintLen64+16)
)

// reportFormat is the first byte. A member that sends another one is not compared.
const reportFormat = 1

var (
	errReport   = errors.New("digest: malformed report")
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	errChecksum = fmt.Errorf("%w: wrong checksum", errReport)
)

// Head returns the newest point.
func (r *Report) Head() Point { return r.Points[len(r.Points)-1] }

// Encode returns the report as bytes, with a checksum: a bit flip in transit must not
// look like one in the store.
func (r *Report) Encode() []byte {
	b := make([]byte, 0, 64+len(r.Points)*20)
	b = append(b, reportFormat)
	b = binary.BigEndian.AppendUint64(b, r.Release)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Member))
	b = binary.AppendUvarint(b, uint64(r.Began))
	b = binary.AppendUvarint(b, uint64(len(r.Points)-1))
	last := r.Began
	for _, p := range r.Points[1:] {
		b = binary.AppendUvarint(b, uint64(p.Index-last))
		b = binary.BigEndian.AppendUint64(b, p.State)
		b = binary.BigEndian.AppendUint64(b, p.V2)
		last = p.Index
	}
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Decode is the inverse of Encode.
func Decode(b []byte) (Report, error) {
	if len(b) < 1+16+2+4 || b[0] != reportFormat {
		return Report{}, errReport
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if checksum(b) != binary.BigEndian.Uint32(sum) {
		return Report{}, errChecksum
	}
	r := Report{Release: binary.BigEndian.Uint64(b[1:]), Member: ids.Member(binary.BigEndian.Uint64(b[9:]))}
	b = b[17:]
	var n uint64
	for _, v := range []*uint64{(*uint64)(&r.Began), &n} {
		size := 0
		if *v, size = binary.Uvarint(b); size <= 0 {
			return Report{}, errReport
		}
		b = b[size:]
	}
	if n >= MaxPoints || n*17 > uint64(len(b)) {
		return Report{}, fmt.Errorf("%w: %d points in %d bytes", errReport, n, len(b))
	}
	r.Points = append(make([]Point, 0, n+1), Point{Index: r.Began})
	for range n {
		more, size := binary.Uvarint(b)
		last := r.Head().Index
		if size <= 0 || len(b) < size+16 || more == 0 || last+ids.Index(more) < last {
			return Report{}, errReport
		}
		r.Points = append(r.Points, Point{last + ids.Index(more), binary.BigEndian.Uint64(b[size:]), binary.BigEndian.Uint64(b[size+8:])})
		b = b[size+16:]
	}
	if len(b) > 0 {
		return Report{}, fmt.Errorf("%w: %d extra bytes", errReport, len(b))
	}
	return r, nil
}

// Stretch is the range of entries after Equal up to Differ: at one of these, two members
// began to write different records. Differ is 0 if they are equal up to Equal.
type Stretch struct{ Equal, Differ ids.Index }

// Found reports whether the members differ.
func (s Stretch) Found() bool { return s.Differ > 0 }

// Comparison is the outcome of comparing two reports. Known is false if they have fewer
// than two indexes in common: then nothing is known.
type Comparison struct {
	Known     bool
	State, V2 Stretch
}

// Compare compares the digests of two members between the indexes that are in both
// reports.
func Compare(a, b Report) Comparison {
	var c Comparison
	if a.Release != b.Release {
		return c
	}
	var first, last Point // a minus b
	n := 0
	for i, j := 0, 0; i < len(a.Points) && j < len(b.Points); {
		p, q := a.Points[i], b.Points[j]
		if p.Index < q.Index {
			i++
			continue
		}
		if p.Index > q.Index {
			j++
			continue
		}
		d := Point{p.Index, p.State - q.State, p.V2 - q.V2}
		if n++; n == 1 {
			first, last = d, d
		}
		c.Known = n > 1
		c.State.see(d.Index, last.Index, d.State == first.State)
		c.V2.see(d.Index, last.Index, d.V2 == first.V2)
		last = d
		i, j = i+1, j+1
	}
	return c
}

// see evaluates the next common index.
func (s *Stretch) see(index, before ids.Index, equal bool) {
	switch {
	case s.Found():
	case equal:
		s.Equal = index
	default:
		s.Equal, s.Differ = before, index
	}
}

// Suspect is a member whose records differ from those of the majority, or, if there is no
// majority, from those of the member that compares.
type Suspect struct {
	Member  ids.Member
	Stretch Stretch
}

// Verdict is the result of comparing the reports of a cluster.
type Verdict struct {
	Suspects []Suspect
	// Majority: more than half of the cluster agree, up to where the suspects differ. Only
	// then is it known that the suspects are the ones that are wrong.
	Majority bool
	// Undecided counts the members that have not applied that far yet. They agree with both
	// sides, and may turn out to be on either.
	Undecided int
}

// Judge determines which members of a cluster of size members differ, by their reports;
// the first report is that of the member that compares.
func Judge(reports []Report, size int) (v Verdict) {
	var groups [][]Report
	for _, r := range reports {
		i := slices.IndexFunc(groups, func(g []Report) bool { c := Compare(g[0], r); return c.Known && !c.State.Found() })
		if i >= 0 {
			groups[i] = append(groups[i], r)
		} else if len(groups) == 0 || slices.ContainsFunc(groups, func(g []Report) bool { return Compare(g[0], r).State.Found() }) {
			groups = append(groups, []Report{r})
		} // otherwise it cannot be compared with any other yet
	}
	v.Undecided = leaveOutUndecided(groups)
	right := slices.IndexFunc(groups, func(g []Report) bool { return len(g) > size/2 })
	if v.Majority = right >= 0; !v.Majority {
		right = 0
	}
	for i, g := range groups {
		if i == right {
			continue
		}
		for _, r := range g {
			if c := Compare(groups[right][0], r); c.State.Found() {
				v.Suspects = append(v.Suspects, Suspect{r.Member, c.State})
			}
		}
	}
	return v
}

// leaveOutUndecided removes from the groups the members that have not reached the index at
// which the first members of the groups are known to differ, and returns their number.
func leaveOutUndecided(groups [][]Report) (n int) {
	differ := ids.Index(0)
	for i, g := range groups {
		for _, other := range groups[:i] {
			differ = max(differ, Compare(other[0], g[0]).State.Differ)
		}
	}
	for i, g := range groups {
		groups[i] = slices.DeleteFunc(g, func(r Report) bool { return r.Member != g[0].Member && Compare(g[0], r).State.Equal < differ })
		n += len(g) - len(groups[i])
	}
	return n
}
