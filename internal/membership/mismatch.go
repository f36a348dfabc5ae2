package membership

import (
	"fmt"
	"strings"
)

// NoLocalName returns the error for an --initial-cluster that does not name this
// member. unnamed are the peer URLs in it without a name: "etcdctl member add" prints
// members that way that were added before and have not started yet.
func NoLocalName(name string, unnamed []string) error {
	hint := ""
	if len(unnamed) > 0 {
		hint = fmt.Sprintf(": in front of =%s the name is missing, since that member was not started when this was printed; any name will do for it, and its own for this one",
			strings.Join(unnamed, ", ="))
	}
	return fmt.Errorf("couldn't find local name %q in the initial cluster configuration%s", name, hint)
}

func unnamed(ms []InitialMember) []string {
	for _, m := range ms {
		if m.Name == "" {
			return m.PeerURLs
		}
	}
	return nil
}

// ExplainMismatch describes how --initial-cluster differs from the running cluster,
// and what would be correct; empty if it finds no difference. For same, see
// MatchExisting.
func ExplainMismatch(initial []InitialMember, existing []Member, same func(a, b []string) (bool, error)) string {
	var text []string
	names := make([]string, len(existing)) // in --initial-cluster
	for _, im := range initial {
		found := false
		for i, em := range existing {
			if ok, err := same(em.PeerURLs, im.PeerURLs); err == nil && ok && names[i] == "" {
				names[i], found = im.Name, true
				break
			}
		}
		if !found {
			urls := strings.Join(im.PeerURLs, ",")
			text = append(text, fmt.Sprintf("the cluster has no member at %s, which is %s in --initial-cluster: it has to be added first (etcdctl member add %s --peer-urls=%s)",
				urls, im.Name, im.Name, urls))
		}
	}
	var right []InitialMember
	for i, em := range existing {
		name := names[i]
		if name == "" {
			state := fmt.Sprintf(", with the name %s", em.Name)
			if name = em.Name; !em.Started() {
				name, state = em.ID.String(), ", which was added and has not been started"
			}
			text = append(text, fmt.Sprintf("--initial-cluster leaves out member %s at %s%s", em.ID, strings.Join(em.PeerURLs, ","), state))
		}
		right = append(right, InitialMember{Name: name, PeerURLs: em.PeerURLs})
	}
	if len(text) == 0 {
		return ""
	}
	return strings.Join(text, "; ") + "; the cluster is --initial-cluster=" + FormatInitialCluster(right)
}
