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
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/transport/peerapi"
)

// Digests compares, on the leader, the members' digests of what they have written for
// the entries of the log. It finds a member that writes something else within seconds,
// and the range of entries in which that began. Members that report no digest, such as
// members of etcd and of older releases of Quorate, are left out.
type Digests struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	cluster   *membership.Cluster
	peers     *peerapi.Client
	Integrity *Integrity

	ours  sync.Map                 // ids of the members that have reported a digest
	found atomic.Pointer[[]parted] // the members that differ; nil for none

	// Used by the comparing task alone.
	equal    map[ids.Member]ids.Index // by member: the highest index at which its digest equalled ours
	suspects []ids.Member             // of the previous round
	waited   int                      // rounds in which a member that could decide was unreachable or behind
	v2       []ids.Member             // members that differ in the v2 API and have been logged
}

// parted is a member that differs.
type parted struct {
	digest.Suspect
	majority bool // a majority of the members agrees on something else
}

func (p parted) String() string {
	than := "the leader"
	if p.majority {
		than = "the majority"
	}
	return fmt.Sprintf("memberID:%d wrote different records than %s for an entry after %d, up to %d", p.Member, than, p.Stretch.Equal, p.Stretch.Differ)
}

const (
	// digestTimeout bounds how long a round waits for answers.
	digestTimeout = time.Second
	// digestPatience is how many rounds the leader waits for a member that is
	// unreachable or behind, when members differ and no majority agrees.
	digestPatience = 10
)

// Tells reports whether a member has reported a digest, and so can use one.
func (d *Digests) Tells(id ids.Member) bool {
	_, ok := d.ours.Load(id)
	return ok
}

// errors returns the lines of Status about the members that differ.
func (d *Digests) errors() (lines []string) {
	if found := d.found.Load(); found != nil {
		for _, p := range *found {
			lines = append(lines, p.String())
		}
	}
	return lines
}

// compare runs one round. A single round never raises an alarm.
func (d *Digests) compare(ctx context.Context) {
	if !d.replica.isLeader() {
		d.forget()
		return
	}
	reports := d.ask(ctx, d.equal)
	now, least, differs, v2 := make(map[ids.Member]ids.Index), ids.Index(0), false, []digest.Suspect(nil)
	for _, r := range reports {
		c := digest.Compare(d.own(d.equal[r.Member]), r)
		differs = differs || c.State.Found()
		if c.V2.Found() {
			v2 = append(v2, digest.Suspect{Member: r.Member, Stretch: c.V2})
		}
		if !c.Known || c.State.Found() || c.V2.Found() {
			continue // it is asked for its whole digest below
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

// own returns this member's report.
func (d *Digests) own(from ids.Index) digest.Report {
	r := d.replica.mach().Digest().Report(from)
	r.Member = d.replica.id
	return r
}

// judge asks all members for their whole digests and returns those that differ. complete
// is false if the missing answer of a member could change the result.
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

// conclude raises the alarm about members that have differed in two consecutive rounds,
// as etcd does for hashes that differ. If another member could decide who is right, it
// waits some more rounds for that member.
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
			accused = 0 // it is unknown which member is right
		}
		fields := []zap.Field{zap.Stringer("leader-id", d.replica.id), zap.Stringer("member-id", s.Member),
			zap.Uint64("last-equal-index", uint64(s.Stretch.Equal)), zap.Uint64("first-differing-index", uint64(s.Stretch.Differ)), zap.Bool("quorum-exist", s.majority)}
		switch {
		case !s.majority && 0 < d.waited && d.waited < digestPatience:
		case !slices.Contains(before, s.Member):
			d.lg.Warn("a member seems to have written different records for the same entries; comparing once more", fields...)
		case !d.alarmed(accused):
			d.lg.Error("a member has written different records for the same entries; raising the CORRUPT alarm",
				append(fields, zap.Stringer("corrupt-member-id", accused))...)
			d.Integrity.raiseCorrupt(accused)
		}
	}
}

// alarmed reports whether the alarm about a member is active.
func (d *Digests) alarmed(id ids.Member) bool {
	return slices.ContainsFunc(d.replica.mach().Alarms(), func(a *pb.AlarmMember) bool {
		return ids.Member(a.MemberID) == id && a.Alarm == pb.AlarmType_CORRUPT
	})
}

// show publishes the result for Status and metrics, and logs differences of the v2 API.
// v2 trees may differ for legitimate reasons, so those raise no alarm.
func (d *Digests) show(suspects []parted, v2 []digest.Suspect) {
	if len(suspects)+len(v2) == 0 {
		d.clear()
		return
	}
	d.found.Store(&suspects)
	for _, s := range suspects {
		metrics.DigestDiffers.WithLabelValues(s.Member.String(), metrics.DifferState).Set(1)
	}
	for _, s := range v2 {
		metrics.DigestDiffers.WithLabelValues(s.Member.String(), metrics.DifferV2).Set(1)
		if !slices.Contains(d.v2, s.Member) {
			d.v2 = append(d.v2, s.Member)
			d.lg.Warn("a member has written different v2 API records for the same entries; replace it unless its snapshot came from a member of etcd 3.6 or later",
				zap.Stringer("member-id", s.Member), zap.Uint64("last-equal-index", uint64(s.Stretch.Equal)), zap.Uint64("first-differing-index", uint64(s.Stretch.Differ)))
		}
	}
}

// clear withdraws the published result.
func (d *Digests) clear() {
	if d.found.Swap(nil) != nil {
		metrics.DigestDiffers.Reset()
	}
	d.v2 = nil
}

// forget drops the state of earlier rounds on a member that does not lead.
func (d *Digests) forget() {
	d.suspects = nil
	d.clear()
	if d.equal != nil {
		d.equal = nil
		metrics.DigestComparedIndex.Set(0)
	}
}

// ask asks all other members for their digests after the index in from.
func (d *Digests) ask(ctx context.Context, from map[ids.Member]ids.Index) []digest.Report {
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
