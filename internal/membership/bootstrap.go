package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// InitialMember is one name of --initial-cluster with its peer URLs, sorted.
type InitialMember struct {
	Name     string
	PeerURLs []string
}

// ParseInitialCluster parses "name=url,name=url"; a name may occur several times.
// The result is sorted by name. Empty elements are skipped. An element without "=" is
// a name with an empty URL, which is an error.
func ParseInitialCluster(s string) ([]InitialMember, error) {
	var names []string
	urls := make(map[string][]string)
	for piece := range strings.SplitSeq(s, ",") {
		if piece == "" {
			continue
		}
		name, u, _ := strings.Cut(piece, "=")
		if _, ok := urls[name]; !ok {
			names = append(names, name)
		}
		urls[name] = append(urls[name], u)
	}
	var ms []InitialMember
	for _, name := range names {
		us, err := types.NewURLs(urls[name])
		if err != nil {
			return nil, err
		}
		ms = append(ms, InitialMember{Name: name, PeerURLs: us.StringSlice()})
	}
	slices.SortFunc(ms, func(a, b InitialMember) int { return strings.Compare(a.Name, b.Name) })
	return ms, nil
}

// FormatInitialCluster returns the pairs name=url in order, as etcd prints them.
func FormatInitialCluster(ms []InitialMember) string {
	var pairs []string
	for _, m := range ms {
		for _, u := range m.PeerURLs {
			pairs = append(pairs, m.Name+"="+u)
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// CheckInitial checks what applies to new and joining members: the local name is
// listed and no URL occurs twice.
func CheckInitial(ms []InitialMember, localName string) error {
	if err := checkListed(ms, localName); err != nil {
		return err
	}
	return checkUnique(ms)
}

// CheckFounder checks the initial cluster of a founding member, in etcd's order: the
// local name is listed, its URLs are those that it advertises, and no URL occurs
// twice. For same, see CheckAdvertised.
func CheckFounder(ms []InitialMember, localName string, advertised []string, same func(a, b []string) (bool, error)) error {
	if err := checkListed(ms, localName); err != nil {
		return err
	}
	if err := CheckAdvertised(ms, localName, advertised, same); err != nil {
		return err
	}
	return checkUnique(ms)
}

func checkListed(ms []InitialMember, localName string) error {
	if !slices.ContainsFunc(ms, func(m InitialMember) bool { return m.Name == localName }) {
		return NoLocalName(localName, unnamed(ms))
	}
	return nil
}

func checkUnique(ms []InitialMember) error {
	seen := make(map[string]bool)
	for _, m := range ms {
		for _, u := range m.PeerURLs {
			if seen[CanonicalURL(u)] {
				return fmt.Errorf("initial cluster %s has duplicate url", FormatInitialCluster(ms))
			}
			seen[CanonicalURL(u)] = true
		}
	}
	return nil
}

// CheckAdvertised checks that the local member's URLs in --initial-cluster equal its
// --initial-advertise-peer-urls. same compares two lists of URLs, resolving host names
// if necessary; it is called only once.
func CheckAdvertised(ms []InitialMember, localName string, advertised []string, same func(a, b []string) (bool, error)) error {
	adv := slices.Sorted(slices.Values(advertised))
	var initial []string
	for _, m := range ms {
		if m.Name == localName {
			initial = slices.Sorted(slices.Values(m.PeerURLs))
		}
	}
	ok, err := same(adv, initial)
	if ok {
		return nil
	}
	advFlag := FormatInitialCluster([]InitialMember{{Name: localName, PeerURLs: adv}})
	if missing := AbsentURLs(initial, adv); len(missing) > 0 {
		for i := range missing {
			missing[i] = localName + "=" + missing[i]
		}
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%w)",
			strings.Join(missing, ","), strings.Join(adv, ","), errOrUnequal(err))
	}
	if missing := AbsentURLs(adv, initial); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
			strings.Join(missing, ","), advFlag)
	}
	return fmt.Errorf("failed to resolve %s to match --initial-cluster=%s (%w)", strings.Join(adv, ","), advFlag, errOrUnequal(err))
}

func errOrUnequal(err error) error {
	if err == nil {
		return errors.New("URLs differ")
	}
	return err
}

// Founders returns the members of a new cluster, sorted by id, and its id.
func Founders(initial []InitialMember, token string) (members []Member, clusterID ids.Cluster, err error) {
	var founders []ids.Member
	for _, im := range initial {
		id := ComputeMemberID(im.PeerURLs, token, nil)
		if id == 0 {
			return nil, 0, fmt.Errorf("cannot use %s as member id", id)
		}
		if slices.Contains(founders, id) {
			return nil, 0, fmt.Errorf("member exists with identical ID %s: %s", id, im.Name)
		}
		founders = append(founders, id)
		members = append(members, Member{ID: id, Name: im.Name, PeerURLs: slices.Clone(im.PeerURLs)})
	}
	slices.SortFunc(members, byID)
	return members, ComputeClusterID(founders), nil
}

// BootstrapEntries returns the first entries of a new cluster's log: one AddNode per
// member, ascending by id, index 1..n, term 1, all committed. Every founder writes
// them itself, so they must be identical to the byte.
func BootstrapEntries(founders []Member) ([]*raftpb.Entry, error) {
	sorted := slices.Clone(founders)
	slices.SortFunc(sorted, byID)
	ents := make([]*raftpb.Entry, 0, len(sorted))
	for i, m := range sorted {
		ctx, err := encodeContext(m, false)
		if err != nil {
			return nil, err
		}
		data, err := proto.Marshal(&raftpb.ConfChange{
			Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(m.ID)), Context: ctx,
		})
		if err != nil {
			return nil, fmt.Errorf("encode bootstrap entry of member %s: %w", m.ID, err)
		}
		ents = append(ents, &raftpb.Entry{
			Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(i + 1)), Data: data,
		})
	}
	return ents, nil
}

// MatchExisting assigns the members of --initial-cluster the ids that the running
// cluster has for them. same compares two lists of peer URLs, resolving host names if
// necessary. The result has the names and URLs of initial and is sorted by id.
func MatchExisting(initial []InitialMember, existing []Member, same func(a, b []string) (bool, error)) ([]Member, error) {
	if len(initial) != len(existing) {
		return nil, errors.New("member count is unequal")
	}
	locals := make([]Member, len(initial))
	for i, im := range initial {
		locals[i] = Member{Name: im.Name, PeerURLs: slices.Clone(im.PeerURLs)}
	}
	for _, em := range existing {
		j, err := matching(locals, em, same)
		if j < 0 {
			return nil, fmt.Errorf("PeerURLs: no match found for existing member (%s, %v), last resolver error (%w)",
				em.ID, em.PeerURLs, errOrUnequal(err))
		}
		locals[j].ID = em.ID
	}
	slices.SortFunc(locals, byID)
	return locals, nil
}

func matching(locals []Member, em Member, same func(a, b []string) (bool, error)) (int, error) {
	var last error
	for j := range locals {
		if locals[j].ID != 0 {
			continue // already matched
		}
		ok, err := same(em.PeerURLs, locals[j].PeerURLs)
		if ok {
			return j, nil
		}
		last = err
	}
	return -1, last
}

// CheckLearners rejects a maximum below the number of existing learners: this member
// would decide about the next one differently from the others.
func CheckLearners(ms []Member, most int) error {
	n := 0
	for _, m := range ms {
		if m.IsLearner {
			n++
		}
	}
	if n > most {
		return ErrTooManyLearners
	}
	return nil
}

// Describe formats a cluster as etcd does in its errors.
func Describe(clusterID ids.Cluster, ms []Member) string {
	text := make([]string, len(ms))
	for i, m := range ms {
		text[i] = fmt.Sprintf("&{ID:%s RaftAttributes:{PeerURLs:%v IsLearner:%t} Attributes:{Name:%s ClientURLs:%v}}",
			m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs)
	}
	return fmt.Sprintf("{ClusterID:%s Members:[%s] RemovedMemberIDs:[]}", clusterID, strings.Join(text, " "))
}

// RemotePeerURLs returns the peer URLs of all members but the local one, sorted. A
// starting member queries them about the cluster.
func RemotePeerURLs(initial []InitialMember, localName string) []string {
	var us []string
	for _, m := range initial {
		if m.Name != localName {
			us = append(us, m.PeerURLs...)
		}
	}
	slices.Sort(us)
	return us
}
