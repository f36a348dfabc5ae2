package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"quorate/compat/child"
)

const (
	token     = "lane"
	apiURL    = "https://127.0.0.1:6443"
	eventTTL  = 30 * time.Second
	compacted = 30 * time.Second // between two compactions of the apiserver; a watcher that is away for less misses nothing
)

// control is a kube-apiserver in front of a store.
type control struct {
	*store
	flags   []string
	logs    []string // of processes that have exited
	rest    *rest.Config
	process *child.Process
	dynamic.Interface
	discovery *discovery.DiscoveryClient
}

// newControl starts a kube-apiserver with the flags that kubeadm gives it, as far as they concern the store.
func newControl(s *store, flags ...string) *control {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(s, err)
	der, err := x509.MarshalECPrivateKey(key)
	must(s, err)
	must(s, os.WriteFile(s.file("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
	must(s, os.WriteFile(s.file("tokens.csv"), []byte(token+",admin,1,system:masters\n"), 0o600))
	c := &control{store: s}
	c.flags = append([]string{
		"--etcd-servers=" + strings.Join(s.URLs(), ","),
		"--etcd-cafile=" + s.file("ca.crt"), "--etcd-certfile=" + s.file("apiserver-etcd-client.crt"), "--etcd-keyfile=" + s.file("apiserver-etcd-client.key"),
		"--etcd-prefix=/registry", "--storage-backend=etcd3", "--storage-media-type=application/vnd.kubernetes.protobuf",
		"--etcd-compaction-interval=" + compacted.String(), "--etcd-count-metric-poll-period=5s", "--etcd-db-metric-poll-interval=5s", "--event-ttl=" + eventTTL.String(),
		"--bind-address=127.0.0.1", "--secure-port=6443", "--advertise-address=10.0.0.254", "--cert-dir=" + s.file("apiserver"),
		"--token-auth-file=" + s.file("tokens.csv"), "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.96.0.0/12",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + s.file("sa.key"), "--service-account-signing-key-file=" + s.file("sa.key"),
		// No controller creates service accounts here, and a pod without one is refused.
		"--disable-admission-plugins=ServiceAccount",
		// All writers are one user, which must not be throttled.
		"--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=0",
	}, flags...)
	c.rest = &rest.Config{Host: apiURL, BearerToken: token, QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	c.Interface, err = dynamic.NewForConfig(c.rest)
	must(s, err)
	c.discovery, err = discovery.NewDiscoveryClientForConfig(c.rest)
	must(s, err)
	c.run()
	return c
}

func (c *control) run() {
	c.Helper()
	c.process = child.Start(c.store, child.Config{Program: *apiserver, Dir: c.file("apiserver"), Args: c.flags})
	c.answers()
}

// answers waits until the apiserver is ready, including its checks of etcd.
func (c *control) answers() {
	c.Helper()
	child.Eventually(c.store, limit, "the apiserver is ready", func() error {
		if !c.process.Running() {
			c.Fatalf("the apiserver ended:\n%s", c.process.Tail(30))
		}
		for _, path := range []string{"/readyz/etcd", "/readyz/etcd-readiness", "/livez/etcd", "/readyz"} {
			if text, err := c.get(path); err != nil {
				return fmt.Errorf("%s: %w: %s", path, err, text)
			}
		}
		return nil
	})
}

func (c *control) get(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := c.discovery.RESTClient().Get().AbsPath(path).DoRaw(ctx)
	return string(b), err
}

// again kills and restarts the apiserver. A graceful stop would wait for watches to end.
func (c *control) again() {
	c.Helper()
	c.process.Kill()
	c.logs = append(c.logs, c.process.Output())
	c.run()
}

// log is the output of all processes of the apiserver.
func (c *control) log() string { return strings.Join(append(c.logs, c.process.Output()), "") }

// etcdRequests are the apiserver's own metrics of its requests to the store.
type etcdRequests struct {
	count, errors int
	seconds       float64
}

var sample = regexp.MustCompile(`(?m)^(etcd_requests_total|etcd_request_errors_total|etcd_request_duration_seconds_sum)\{([^}]*)\} (\S+)$`)

func (c *control) etcdRequests() (sum etcdRequests, failed []string) {
	c.Helper()
	text, err := c.get("/metrics")
	must(c, err)
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[3], 64)
		must(c, err)
		switch m[1] {
		case "etcd_requests_total":
			sum.count += int(v)
		case "etcd_request_duration_seconds_sum":
			sum.seconds += v
		case "etcd_request_errors_total":
			sum.errors += int(v)
			failed = append(failed, m[2]+" "+m[3])
		}
	}
	return sum, failed
}
