package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	etcdphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/etcd"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	etcdutil "k8s.io/kubernetes/cmd/kubeadm/app/util/etcd"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

// size is the number of members, each on the machine of its number.
const size = 3

// metricsPort is where kubeadm has a member answer probes, on the loopback of its host.
const metricsPort = "2381"

// store is a cluster of members as kubeadm sets them up. Its methods are called from the test's
// goroutine.
type store struct {
	testing.TB
	program  string
	machines child.Machines
	dir      string
	ca       *pki.CA
	members  [size + 1]*storeMember // from 1
}

type storeMember struct {
	args []string
	*child.Process
}

// newStore founds a cluster with its first member and has the others join, as `kubeadm init` and `kubeadm join
// --control-plane` do.
func newStore(t testing.TB, program string, machines child.Machines) *store {
	t.Helper()
	s := &store{TB: t, program: program, machines: machines, dir: t.TempDir(), ca: pki.NewCA("etcd-ca")}
	// In memory, because only processes are killed here; other load on the disk is irrelevant.
	child.Must(t, "mount", "-t", "tmpfs", "none", s.dir)
	t.Cleanup(func() { child.Must(t, "umount", "-l", s.dir) })
	s.pair("apiserver-etcd-client", s.ca.Issue("kube-apiserver-etcd-client"))
	must(t, os.WriteFile(s.file("ca.crt"), s.ca.PEM, 0o600))

	cfg, err := configutil.DefaultedStaticInitConfiguration()
	must(t, err)
	kubeadmapi.SetActiveTimeouts(cfg.Timeouts)
	must(t, s.start(1, cfg, nil))
	s.ready(1)
	for i := 2; i <= size; i++ {
		client, err := etcdutil.New(s.URLs()[:i-1], s.file("ca.crt"), s.file("apiserver-etcd-client.crt"), s.file("apiserver-etcd-client.key"))
		must(t, err)
		peer := etcdutil.GetPeerURL(&kubeadmapi.APIEndpoint{AdvertiseAddress: machines.IP(i)})
		cluster, err := client.AddMemberAsLearner(node(i), peer)
		must(t, err)
		must(t, s.start(i, cfg, cluster))
		id, err := client.GetMemberID(peer)
		must(t, err)
		must(t, client.MemberPromote(id))
		s.ready(i)
	}
	return s
}

// node is the name of a control plane node.
func node(i int) string { return fmt.Sprintf("cp-%d", i) }

// file is the path of a file of the client.
func (s *store) file(name string) string { return filepath.Join(s.dir, name) }

// pair writes NAME.crt and NAME.key.
func (s *store) pair(name string, p pki.Pair) {
	s.Helper()
	must(s, os.MkdirAll(filepath.Dir(s.file(name)), 0o700))
	must(s, os.WriteFile(s.file(name+".crt"), p.Cert, 0o600))
	must(s, os.WriteFile(s.file(name+".key"), p.Key, 0o600))
}

// start runs what kubeadm writes into the static pod of machine i.
func (s *store) start(i int, cfg *kubeadmapi.InitConfiguration, cluster []etcdutil.Member) error {
	s.Helper()
	name := node(i)
	for _, kind := range []string{"server", "peer"} {
		s.pair(filepath.Join(name, "pki/etcd", kind), s.ca.Issue(name, name, "localhost", s.machines.IP(i), "127.0.0.1", "::1"))
	}
	if err := os.WriteFile(s.file(name+"/pki/etcd/ca.crt"), s.ca.PEM, 0o600); err != nil {
		return err
	}
	cc := cfg.ClusterConfiguration.DeepCopy()
	cc.CertificatesDir, cc.Etcd.Local.DataDir = s.file(name+"/pki"), s.file(name+"/data")
	pod := etcdphase.GetEtcdPodSpec(cc, &kubeadmapi.APIEndpoint{AdvertiseAddress: s.machines.IP(i), BindPort: 6443}, name, cluster)
	s.members[i] = &storeMember{args: pod.Spec.Containers[0].Command[1:]}
	s.run(i)
	return nil
}

// run starts the process of machine i.
func (s *store) run(i int) {
	s.Helper()
	s.members[i].Process = child.Start(s, child.Config{Program: "ip", Dir: s.file(node(i) + "/run"), Args: s.machines.On(i, s.program, s.members[i].args...)})
}

// ready waits until the readiness probe of machine i succeeds, as the kubelet would.
func (s *store) ready(i int) {
	s.Helper()
	child.Eventually(s, limit, node(i)+" is ready", func() error { return s.probe(i, "/readyz") })
}

// probe requests a page from the probe port, on the machine itself.
func (s *store) probe(i int, path string) error {
	return probe(s.machines, i, "http://127.0.0.1:"+metricsPort+path)
}

// probe requests a page from a machine and returns an error if the status is not 200.
func probe(machines child.Machines, i int, url string) error {
	out, err := machines.Run(10*time.Second, i, "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url)
	if err != nil || out != "200" {
		return fmt.Errorf("%s says %q: %v", url, out, err)
	}
	return nil
}

// end sends the process of machine i a signal and waits for its exit.
func (s *store) end(i int, signal syscall.Signal) {
	s.Helper()
	s.members[i].Signal(signal)
	select {
	case <-s.members[i].Exited():
	case <-time.After(limit):
		s.Fatalf("%s does not end after %v", node(i), signal)
	}
}

// URLs are the client URLs of all members.
func (s *store) URLs() []string {
	var urls []string
	for i := 1; i <= size; i++ {
		urls = append(urls, etcdutil.GetClientURLByIP(s.machines.IP(i)))
	}
	return urls
}

// ctl runs etcdctl with the apiserver's certificate.
func (s *store) ctl(args ...string) string {
	s.Helper()
	out, err := child.Run(limit, *etcdctl, append([]string{"--endpoints=" + strings.Join(s.URLs(), ","), "--cacert=" + s.file("ca.crt"),
		"--cert=" + s.file("apiserver-etcd-client.crt"), "--key=" + s.file("apiserver-etcd-client.key")}, args...)...)
	if err != nil {
		s.Fatalf("etcdctl %q: %v\n%s", args, err, out)
	}
	return out
}

// CPU is the CPU time that the members' processes have used so far.
func (s *store) CPU() time.Duration {
	s.Helper()
	var sum time.Duration
	for i := 1; i <= size; i++ {
		d, err := harness.CPU(s.members[i].PID())
		must(s, err)
		sum += d
	}
	return sum
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
