package ctlv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	client "go.etcd.io/etcd/client/v2"
)

const defaultEndpoints = "http://127.0.0.1:2379,http://127.0.0.1:4001"

// dialTimeout bounds the time to connect, unless the command's timeout is shorter.
const dialTimeout = 30 * time.Second

// client connects to the cluster and, unless --no-sync is given, replaces the endpoints by
// those that the members advertise.
func (t *connection) client() (client.Client, error) {
	c, err := t.unsynced()
	if err != nil {
		return nil, err
	}
	given := strings.Join(c.Endpoints(), ",")
	if !t.noSync {
		t.trace("start to sync cluster using endpoints(%s)", given)
		ctx, cancel := t.limited()
		err := c.Sync(ctx)
		cancel()
		switch {
		case errors.Is(err, client.ErrNoEndpoints):
			fmt.Fprintf(t.Stderr, "etcd cluster has no published client endpoints.\nTry '--no-sync' if you want to access non-published client endpoints(%s).\n", given)
			return nil, refused(exitServerError, err)
		case unreachable(err):
			return nil, refused(exitBadConnection, err)
		}
		// The request will run into any other error again.
		t.trace("got endpoints(%s) after sync", strings.Join(c.Endpoints(), ","))
	}
	t.trace("Cluster-Endpoints: %s", strings.Join(c.Endpoints(), ", "))
	return c, nil
}

// unsynced returns a client of the given endpoints.
func (t *connection) unsynced() (client.Client, error) {
	endpoints, err := t.findEndpoints()
	if err != nil {
		return nil, plain("%v", err)
	}
	tr, err := t.transport()
	if err != nil {
		return nil, plain("%v", err)
	}
	cfg := client.Config{Transport: tr, Endpoints: endpoints, HeaderTimeoutPerRequest: t.timeout}
	if user := t.or(t.username, "ETCDCTL_USERNAME"); user != "" {
		if cfg.Username, cfg.Password, err = t.splitUser(user, "Password: "); err != nil {
			return nil, plain("%v", err)
		}
	}
	if t.debug {
		client.EnablecURLDebug()
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, plain("%v", err)
	}
	return c, nil
}

// or returns the value of a flag, or of the first variable that is set.
func (t *connection) or(value string, variables ...string) string {
	for _, v := range variables {
		if value == "" {
			value = t.Getenv(v)
		}
	}
	return value
}

func (t *connection) trace(format string, a ...any) {
	if t.debug {
		fmt.Fprintf(t.Stderr, format+"\n", a...)
	}
}

// limited returns the context of a command.
func (t *connection) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), t.totalTimeout)
}

// splitUser parses name[:password], and prompts for a missing password.
func (t *connection) splitUser(user, prompt string) (name, password string, err error) {
	name, password, ok := strings.Cut(user, ":")
	if !ok {
		password, err = t.AskPassword(prompt)
	}
	return name, password, err
}

// domain returns the domain of the SRV records, and whether records of endpoints without
// TLS are accepted.
func (t *connection) domain() (name string, insecure bool) {
	return t.or(t.discoverySRV, "ETCDCTL_DISCOVERY_SRV"), t.insecureDiscovery || t.Getenv("ETCDCTL_INSECURE_DISCOVERY") != ""
}

// findEndpoints returns the endpoints from the SRV records if a domain is given, else those
// of the flags.
func (t *connection) findEndpoints() ([]string, error) {
	found, err := t.discovered()
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		given := t.or(t.endpoints, "ETCDCTL_ENDPOINTS")
		for _, old := range []struct{ value, variable string }{{t.endpoint, "ETCDCTL_ENDPOINT"}, {t.peers, "ETCDCTL_PEERS"}, {defaultEndpoints, ""}} {
			if given == "" {
				given = t.or(old.value, old.variable)
			}
		}
		found = strings.Split(given, ",")
	}
	for i, ep := range found {
		u, err := url.Parse(ep)
		if err != nil {
			//lint:ignore ST1005 the second line is a sentence
			return nil, fmt.Errorf("%w\nAn endpoint of the v2 API is a URL: http://host:port or https://host:port.", err)
		}
		if u.Scheme == "" {
			u.Scheme = "http"
		}
		found[i] = u.String()
	}
	return found, nil
}

func (t *connection) discovered() ([]string, error) {
	domain, insecure := t.domain()
	if domain == "" {
		return nil, nil
	}
	records, err := srv.GetClient("etcd-client", domain, t.Getenv("ETCDCTL_DISCOVERY_SRV_NAME"))
	if err != nil {
		return nil, err
	}
	var kept []string
	for _, ep := range records.Endpoints {
		if !insecure && strings.HasPrefix(ep, "http://") {
			fmt.Fprintf(t.Stderr, "ignoring discovered insecure endpoint %q\n", ep)
			continue
		}
		kept = append(kept, ep)
	}
	return kept, nil
}

func (t *connection) transport() (*http.Transport, error) {
	info := transport.TLSInfo{
		CertFile:      t.or(t.certFile, "ETCDCTL_CERT_FILE"),
		KeyFile:       t.or(t.keyFile, "ETCDCTL_KEY_FILE"),
		TrustedCAFile: t.or(t.caFile, "ETCDCTL_CA_FILE"),
	}
	if domain, insecure := t.domain(); !insecure {
		info.ServerName = domain
	}
	timeout := dialTimeout
	if t.totalTimeout != 0 && t.totalTimeout < timeout {
		timeout = t.totalTimeout
	}
	return transport.NewTransport(info, timeout)
}

// unreachable reports whether no endpoint accepted a connection.
func unreachable(err error) bool {
	switch e := err.(type) {
	case *client.ClusterError:
		for _, one := range e.Errors {
			if !unreachable(one) {
				return false
			}
		}
		return true
	case *net.OpError:
		return e.Op == "dial" || e.Op == "read" || unreachable(e.Err)
	case syscall.Errno:
		return e == syscall.ECONNREFUSED
	case net.Error:
		return e.Timeout()
	}
	return false
}
