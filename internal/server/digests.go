package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/digest"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/transport/peerapi"
)

// Digests compares, as the leader, what the members have added up of the log: a member
// that writes something else than the others is found within seconds, with the entries
// in which that began. Members that tell no digest, those of etcd and of releases of ours
// that keep none, are left out.
type Digests struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	cluster   *membership.Cluster
	peers     *peerapi.Client
	Integrity *Integrity

	ours  sync.Map                 // ids of the members that have told a digest
	found atomic.Pointer[[]parted] // who differs; nil for nobody

	// Of the comparing task alone.
	equal    map[uint64]uint64 // by member: the newest index at which it was the same as here
	suspects []uint64          // of the round before
	waited   int               // rounds in which a member that could decide was away or behind
	v2       []uint64          // members that differ in the v2 API, of whom the log has told
}

// parted is a member that differs.
type parted struct {
	digest.Suspect
	majority bool // of the members agree on something else
}

func (p parted) String() string {
	than := "the leader"
	if p.majority {
		than = "the majority"
	}
	return fmt.Sprintf("memberID:%d wrote other records than %s for an entry behind %d, up to %d", p.Member, than, p.Stretch.Equal, p.Stretch.Differ)
}

const (
	// digestTimeout bounds how long a round waits for answers.
	digestTimeout = time.Second
	// digestPatience is for how many rounds the leader waits, when members differ and
	// no majority agrees, for a member that is away, or has not applied as much.
	digestPatience = 10
)

// Tells reports whether a member has told a digest, so that it can use one.
func (d *Digests) Tells(id uint64) bool {
	_, ok := d.ours.Load(id)
	return ok
}

// errors are the lines of Status about what was found.
func (d *Digests) errors() (lines []string) {
	if found := d.found.Load(); found != nil {
		for _, p := range *found {
			lines = append(lines, p.String())
		}
	}
	return lines
}

// compare is one round. Nobody is accused after a single one.
func (d *Digests) compare(ctx context.Context) {
	if !d.replica.isLeader() {
		d.forget()
		return
	}
	reports := d.ask(ctx, d.equal)
	now, least, differs, v2 := make(map[uint64]uint64), uint64(0), false, []digest.Suspect(nil)
	for _, r := range reports {
		c := digest.Compare(d.own(d.equal[r.Member]), r)
		differs = differs || c.State.Found()
		if c.V2.Found() {
			v2 = append(v2, digest.Suspect{Member: r.Member, Stretch: c.V2})
		}
		if !c.Known || c.State.Found() || c.V2.Found() {
			continue // it is asked for all that it knows
		}
		now[r.Member] = c.State.Equal
		if least == 0 || c.State.Equal < least {
			least = c.State.Equal
		}
	}
	d.equal = now
	var suspects []parted
	complete := true
	if differs {
		suspects, complete = d.judge(ctx)
	} else if least > 0 {
		metrics.DigestComparedIndex.Set(float64(least))
	}
	d.conclude(suspects, complete)
	d.show(suspects, v2)
}

// own is what this member tells.
func (d *Digests) own(from uint64) digest.Report {
	r := d.replica.mach().Digest().Report(from)
	r.Member = d.replica.id
	return r
}

// judge asks everybody for all that they know, and tells who differs, and whether nobody's
// answer is missing that could tell more.
func (d *Digests) judge(ctx context.Context) (out []parted, complete bool) {
	reports := d.ask(ctx, nil)
	tell := 0
	for _, x := range d.cluster.Members() {
		if d.Tells(x.ID) {
			tell++
		}
	}
	v := digest.Judge(slices.Insert(slices.Clone(reports), 0, d.own(0)), len(d.cluster.Members()))
	for _, s := range v.Suspects {
		out = append(out, parted{s, v.Majority})
	}
	return out, len(reports) >= tell && v.Undecided == 0
}

// conclude raises the alarm about members that have differed in two rounds, one after
// the other, as etcd does for hashes that differ. Where another member could tell who is
// right, it waits for that one a few rounds more.
func (d *Digests) conclude(suspects []parted, complete bool) {
	before := d.suspects
	if complete || len(suspects) == 0 {
		d.waited = 0
	} else {
		d.waited++
	}
	d.suspects = nil
	for _, s := range suspects {
		d.suspects = append(d.suspects, s.Member)
		accused := s.Member
		if !s.majority {
			accused = 0 // who is right is not known
		}
		fields := []zap.Field{zap.String("leader-id", membership.FormatID(d.replica.id)), zap.String("member-id", membership.FormatID(s.Member)),
			zap.Uint64("last-equal-index", s.Stretch.Equal), zap.Uint64("first-differing-index", s.Stretch.Differ), zap.Bool("quorum-exist", s.majority)}
		switch {
		case !s.majority && 0 < d.waited && d.waited < digestPatience:
		case !slices.Contains(before, s.Member):
			d.lg.Warn("a member seems to have written other records for the same entries; comparing once more", fields...)
		case !d.alarmed(accused):
			d.lg.Error("a member has written other records for the same entries; raising the CORRUPT alarm",
				append(fields, zap.String("corrupt-member-id", membership.FormatID(accused)))...)
			d.Integrity.raiseCorrupt(accused)
		}
	}
}

// alarmed tells whether the alarm about a member is on.
func (d *Digests) alarmed(id uint64) bool {
	return slices.ContainsFunc(d.replica.mach().Alarms(), func(a *pb.AlarmMember) bool {
		return a.MemberID == id && a.Alarm == pb.AlarmType_CORRUPT
	})
}

// show tells status, metrics and, about the v2 API, the log what was found. Trees of the v2
// API may differ for a reason, so that is no alarm.
func (d *Digests) show(suspects []parted, v2 []digest.Suspect) {
	if len(suspects)+len(v2) == 0 {
		d.clear()
		return
	}
	d.found.Store(&suspects)
	for _, s := range suspects {
		metrics.DigestDiffers.WithLabelValues(membership.FormatID(s.Member), metrics.DifferState).Set(1)
	}
	for _, s := range v2 {
		metrics.DigestDiffers.WithLabelValues(membership.FormatID(s.Member), metrics.DifferV2).Set(1)
		if !slices.Contains(d.v2, s.Member) {
			d.v2 = append(d.v2, s.Member)
			d.lg.Warn("a member has written other records of the v2 API for the same entries; replace it unless it came by a member of etcd 3.6 or later",
				zap.String("member-id", membership.FormatID(s.Member)), zap.Uint64("last-equal-index", s.Stretch.Equal), zap.Uint64("first-differing-index", s.Stretch.Differ))
		}
	}
}

// clear takes back what was shown.
func (d *Digests) clear() {
	if d.found.Swap(nil) != nil {
		metrics.DigestDiffers.Reset()
	}
	d.v2 = nil
}

// forget is for a member that does not lead.
func (d *Digests) forget() {
	d.suspects = nil
	d.clear()
	if d.equal != nil {
		d.equal = nil
		metrics.DigestComparedIndex.Set(0)
	}
}

// ask asks all other members for what they have added up behind the index that is known
// of each.
func (d *Digests) ask(ctx context.Context, from map[uint64]uint64) []digest.Report {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	members := d.cluster.Members()
	answers := make([]*digest.Report, len(members))
	var wg sync.WaitGroup
	for i, x := range members {
		if x.ID == d.replica.id {
			continue
		}
		wg.Go(func() {
			for _, u := range x.PeerURLs {
				r, err := d.peers.Digest(ctx, u, d.cluster.ID(), from[x.ID])
				if err == nil && r.Member == x.ID {
					answers[i] = &r
					d.ours.Store(x.ID, true)
					return
				}
				if errors.Is(err, peerapi.ErrNoDigest) {
					d.ours.Delete(x.ID)
					return
				}
			}
		})
	}
	wg.Wait()
	var out []digest.Report
	for _, r := range answers {
		if r != nil {
			out = append(out, *r)
		}
	}
	return out
}
