package ctlv2

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"quorate/internal/clock"

	"github.com/spf13/cobra"

	client "go.etcd.io/etcd/client/v2"
)

// checkPause is the pause between two rounds of cluster-health --forever.
const checkPause = 10 * time.Second

func (t memberCommands) member() *cobra.Command {
	return t.group("member", "Lists and changes the members of the cluster",
		t.leaf("list", "Lists the members", nil, t.list),
		t.leaf("add <name> <peerURL>", "Adds a member, which may then be started", nil, t.add),
		t.leaf("remove <memberID>", "Removes a member", nil, t.remove),
		t.leaf("update <memberID> <peerURLs>", "Changes the URLs at which peers reach a member", nil, t.update),
	)
}

// onMembers returns the body of a command about members. Its context has the command's
// timeout.
func (t memberCommands) onMembers(f func(ctx context.Context, api client.MembersAPI) error) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	ctx, cancel := t.limited()
	defer cancel()
	return f(ctx, client.NewMembersAPI(c))
}

func (t memberCommands) list(args []string) error {
	if len(args) != 0 {
		return plain("No arguments accepted")
	}
	return t.onMembers(func(ctx context.Context, api client.MembersAPI) error {
		members, err := api.List(ctx)
		if err != nil {
			return plain("%v", err)
		}
		leader, err := api.Leader(ctx)
		if err != nil {
			return plain("Failed to get leader:  %v", err)
		}
		for _, m := range members {
			peers := strings.Join(m.PeerURLs, ",")
			if m.Name == "" {
				fmt.Fprintf(t.Stdout, "%s[unstarted]: peerURLs=%s\n", m.ID, peers)
				continue
			}
			fmt.Fprintf(t.Stdout, "%s: name=%s peerURLs=%s clientURLs=%s isLeader=%v\n", m.ID, m.Name, peers, strings.Join(m.ClientURLs, ","), m.ID == leader.ID)
		}
		return nil
	})
}

func (t memberCommands) add(args []string) error {
	if len(args) != 2 {
		return plain("Provide a name and a single member peerURL")
	}
	name, peerURL := args[0], args[1]
	return t.onMembers(func(ctx context.Context, api client.MembersAPI) error {
		added, err := api.Add(ctx, peerURL)
		if err != nil {
			return plain("%v", err)
		}
		fmt.Fprintf(t.Stdout, "Added member named %s with ID %s to cluster\n", name, added.ID)
		members, err := api.List(ctx)
		if err != nil {
			return plain("%v", err)
		}
		var cluster []string
		for _, m := range members {
			if m.ID == added.ID {
				m.Name = name
			}
			for _, u := range m.PeerURLs {
				cluster = append(cluster, m.Name+"="+u)
			}
		}
		fmt.Fprintf(t.Stdout, "\nETCD_NAME=%q\nETCD_INITIAL_CLUSTER=%q\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n", name, strings.Join(cluster, ","))
		return nil
	})
}

func (t memberCommands) remove(args []string) error {
	if len(args) != 1 {
		return plain("Provide a single member ID")
	}
	id := args[0]
	return t.onMembers(func(ctx context.Context, api client.MembersAPI) error {
		members, err := api.List(ctx)
		if err != nil {
			return plain("Error while verifying ID against known members: %v", err)
		}
		found := false
		for _, m := range members {
			found = found || m.ID == id
			if m.Name == id {
				fmt.Fprintf(t.Stderr, "Found a member named %s; if this is correct, please use its ID, eg:\n\tetcdctl member remove %s\n", m.Name, m.ID)
				fmt.Fprint(t.Stderr, "For more details, read the documentation at https://github.com/etcd-io/etcd/blob/main/Documentation/runtime-configuration.md#remove-a-member\n\n")
			}
		}
		if !found {
			return plain("Couldn't find a member in the cluster with an ID of %s.", id)
		}
		if err := api.Remove(ctx, id); err != nil {
			return &failure{exitError, fmt.Sprintf("Received an error trying to remove member %s: %v", id, err)}
		}
		fmt.Fprintf(t.Stdout, "Removed member %s from cluster\n", id)
		return nil
	})
}

func (t memberCommands) update(args []string) error {
	if len(args) != 2 {
		return plain("Provide an ID and a list of comma separated peerURL (0xabcd http://example.com,http://example1.com)")
	}
	return t.onMembers(func(ctx context.Context, api client.MembersAPI) error {
		if err := api.Update(ctx, args[0], strings.Split(args[1], ",")); err != nil {
			return plain("%v", err)
		}
		fmt.Fprintf(t.Stdout, "Updated member with ID %s in cluster\n", args[0])
		return nil
	})
}

func (t memberCommands) clusterHealth() *cobra.Command {
	var forever bool
	return t.leaf("cluster-health", "Asks each member for its health", func(fs *flagSet) {
		fs.BoolVar(&forever, "forever", false, "ask every 10 seconds until Ctrl-C")
		fs.alias("f", "forever")
	}, func([]string) error {
		ctx := context.Background()
		if forever {
			var stop context.CancelFunc
			ctx, stop = t.UntilSignal(os.Interrupt)
			defer stop()
		}
		err := t.checkAll(ctx, forever)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func (t memberCommands) checkAll(ctx context.Context, forever bool) error {
	tr, err := t.transport()
	if err != nil {
		return refused(exitServerError, err)
	}
	web := &http.Client{Transport: tr}
	c, err := t.unsynced()
	if err != nil {
		return err
	}
	t.trace("Cluster-Endpoints: %s", strings.Join(c.Endpoints(), ", "))
	members, err := client.NewMembersAPI(c).List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			fmt.Fprintln(t.Stdout, "cluster may be unhealthy: failed to list members")
		}
		return refused(exitServerError, err)
	}
	for {
		healthy := 0
		for _, m := range members {
			if t.checkOne(ctx, web, m) {
				healthy++
			}
		}
		switch healthy {
		case len(members):
			fmt.Fprintln(t.Stdout, "cluster is healthy")
		case 0:
			fmt.Fprintln(t.Stdout, "cluster is unavailable")
		default:
			fmt.Fprintln(t.Stdout, "cluster is degraded")
		}
		if !forever {
			if healthy < len(members) {
				return &failure{code: exitNotHealthy}
			}
			return nil
		}
		fmt.Fprint(t.Stdout, "\nnext check after 10 second...\n\n")
		select {
		case <-ctx.Done():
			return nil
		case <-clock.After(checkPause):
		}
	}
}

// checkOne asks a member at its URLs, one after the other, until one answers, and
// prints the result.
func (t memberCommands) checkOne(ctx context.Context, web *http.Client, m client.Member) (healthy bool) {
	if len(m.ClientURLs) == 0 {
		fmt.Fprintf(t.Stdout, "member %s is unreachable: no available published client urls\n", m.ID)
		return false
	}
	for _, u := range m.ClientURLs {
		healthy, err := health(ctx, web, u)
		if err != nil {
			fmt.Fprintf(t.Stdout, "failed to check the health of member %s on %s: %v\n", m.ID, u, err)
			continue
		}
		if healthy {
			fmt.Fprintf(t.Stdout, "member %s is healthy: got healthy result from %s\n", m.ID, u)
		} else {
			fmt.Fprintf(t.Stdout, "member %s is unhealthy: got unhealthy result from %s\n", m.ID, u)
		}
		return healthy
	}
	fmt.Fprintf(t.Stdout, "member %s is unreachable: %v are all unreachable\n", m.ID, m.ClientURLs)
	return false
}

// maxHealth exceeds any member's health answer.
const maxHealth = 1 << 20

// health is a member's health answer; old members send true, newer ones "true".
func health(ctx context.Context, web *http.Client, clientURL string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, clientURL+"/health", nil)
	if err != nil {
		return false, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return false, err
	}
	var word struct{ Health string }
	if err := json.Unmarshal(data, &word); err == nil {
		return word.Health == "true", nil
	}
	var truth struct{ Health bool }
	err = json.Unmarshal(data, &truth)
	return truth.Health, err
}
