package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"quorate/compat/child"
	"quorate/compat/pki"
)

// pods are those of the StatefulSet, run as the kubelet would: each on a host of its own, with the names of the
// headless Service, the image's user, and persistent volumes. Ordinal n is on machine n+1.
type pods struct {
	*testing.T
	machines child.Machines
	dir      string
	running  map[int]*child.Process
}

const (
	podNamespace = "etcd"
	founders     = 3
	grown        = 5
)

// The StatefulSet does what its comments promise: founding, a pod that dies, a volume that is lost, scaling up
// and down.
func TestStatefulSetRuns(t *testing.T) {
	if !child.Isolated(t, *required) {
		return
	}
	p := newPods(t)
	founding, growing := statefulSet(t)

	p.start(0, founding)
	if err := p.probe(0, founding.Spec.Template.Spec.Containers[0].StartupProbe, founding); err == nil {
		t.Error("one pod of three is ready")
	}
	p.start(1, founding)
	p.start(2, founding)
	for n := range founders {
		p.ready(n, founding)
	}
	p.ctl(0, founding, "put", "kept", "by all")

	// A pod dies, and its successor has the same volume.
	p.end(1, syscall.SIGKILL)
	p.start(1, founding)
	p.ready(1, founding)

	// A volume is lost: the founding member is refused instead of voting without what it had promised.
	p.end(2, syscall.SIGKILL)
	must(t, os.RemoveAll(p.volume(2)))
	p.start(2, founding)
	if code := p.running[2].Wait(t, limit); code == 0 {
		t.Error("a founder without its volume ended well")
	}

	// grow.yaml, as a rolling update: one after the other.
	for _, n := range []int{1, 0} {
		p.end(n, syscall.SIGTERM)
		p.start(n, growing)
		p.ready(n, growing)
	}
	// The lost one is removed, and comes back as a new member; then there are five.
	p.remove(2, growing)
	must(t, os.RemoveAll(p.volume(2)))
	for n := 2; n < grown; n++ {
		p.start(n, growing)
		p.ready(n, growing)
	}
	p.members(growing, 0, 1, 2, 3, 4)
	if out := p.ctl(4, growing, "get", "kept", "--print-value-only"); strings.TrimSpace(out) != "by all" {
		t.Errorf("the last pod says %q", out)
	}

	// Smaller again: the member, the pod, the volume.
	p.remove(4, growing)
	p.end(4, syscall.SIGTERM)
	p.members(growing, 0, 1, 2, 3)
	for n := range grown - 1 {
		p.ready(n, growing)
	}
}

func newPods(t *testing.T) *pods {
	t.Helper()
	p := &pods{T: t, machines: child.NewMachines(t, grown), dir: t.TempDir(), running: map[int]*child.Process{}}
	for _, dir := range []string{p.dir, filepath.Dir(p.dir)} { // the image's user needs access
		must(t, os.Chmod(dir, 0o755))
	}
	// The DNS records: the pods by their names, including those that are not ready; and the Service, by a pod that
	// is ready.
	hosts := "127.0.0.1 localhost\n" + p.machines.IP(1) + " etcd." + podNamespace + ".svc\n"
	names := []string{"localhost", "127.0.0.1", "etcd." + podNamespace + ".svc", "*.etcd-peers." + podNamespace + ".svc"}
	for n := range grown {
		hosts += fmt.Sprintf("%s etcd-%d.etcd-peers.%s.svc\n", p.machines.IP(n+1), n, podNamespace)
	}
	file := filepath.Join(p.dir, "hosts")
	must(t, os.WriteFile(file, []byte(hosts), 0o644))
	child.Must(t, "mount", "--bind", file, "/etc/hosts")
	// The program in a place where the image's user can run it.
	b, err := os.ReadFile(*etcd)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(p.dir, "etcd"), b, 0o755))
	// The Secret, as the kubelet mounts it.
	ca := pki.NewCA("etcd")
	pair := ca.Issue("etcd", names...)
	tls := filepath.Join(p.dir, "tls")
	must(t, os.Mkdir(tls, 0o755))
	for name, content := range map[string][]byte{"ca.crt": ca.PEM, "tls.crt": pair.Cert, "tls.key": pair.Key} {
		must(t, os.WriteFile(filepath.Join(tls, name), content, 0o440))
		must(t, os.Chown(filepath.Join(tls, name), 0, 65532))
	}
	return p
}

func (p *pods) volume(n int) string { return filepath.Join(p.dir, fmt.Sprintf("data-etcd-%d", n)) }

// expand substitutes variables as the kubelet does, and replaces mounted paths by this test's.
func (p *pods) expand(n int, s string) string {
	return strings.NewReplacer("$(POD_NAME)", fmt.Sprintf("etcd-%d", n), "$(POD_NAMESPACE)", podNamespace,
		"/etc/etcd/tls", filepath.Join(p.dir, "tls"), "/var/lib/etcd", p.volume(n)).Replace(s)
}

func (p *pods) start(n int, set *appsv1.StatefulSet) {
	p.Helper()
	spec := set.Spec.Template.Spec
	user := *spec.SecurityContext.RunAsUser
	// A volume as the kubelet provides it: its group can write, its owner is root.
	must(p, os.MkdirAll(p.volume(n), 0o700))
	must(p, os.Chown(p.volume(n), 0, int(*spec.SecurityContext.FSGroup)))
	must(p, os.Chmod(p.volume(n), 0o2775))
	args := []string{"--reuid", fmt.Sprint(user), "--regid", fmt.Sprint(*spec.SecurityContext.RunAsGroup), "--clear-groups", "--no-new-privs",
		filepath.Join(p.dir, spec.Containers[0].Command[0])}
	for _, a := range spec.Containers[0].Args {
		args = append(args, p.expand(n, a))
	}
	p.running[n] = child.Start(p, child.Config{Program: "ip", Dir: filepath.Join(p.dir, fmt.Sprintf("run-%d", n)), Args: p.machines.On(n+1, "setpriv", args...)})
}

func (p *pods) end(n int, signal syscall.Signal) {
	p.Helper()
	p.running[n].Signal(signal)
	select {
	case <-p.running[n].Exited():
	case <-time.After(time.Minute):
		p.Fatalf("etcd-%d does not end after %v", n, signal)
	}
}

// probe does what the kubelet does with a probe.
func (p *pods) probe(n int, probed *corev1.Probe, set *appsv1.StatefulSet) error {
	for _, port := range set.Spec.Template.Spec.Containers[0].Ports {
		if port.Name == probed.HTTPGet.Port.String() {
			return probe(p.machines, n+1, fmt.Sprintf("http://%s:%d%s", p.machines.IP(n+1), port.ContainerPort, probed.HTTPGet.Path))
		}
	}
	return fmt.Errorf("no port is called %s", probed.HTTPGet.Port.String())
}

func (p *pods) ready(n int, set *appsv1.StatefulSet) {
	p.Helper()
	c := set.Spec.Template.Spec.Containers[0]
	child.Eventually(p, limit, fmt.Sprintf("etcd-%d is ready", n), func() error {
		if !p.running[n].Running() {
			p.Fatalf("etcd-%d ended:\n%s", n, p.running[n].Tail(10))
		}
		for _, probed := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if err := p.probe(n, probed, set); err != nil {
				return err
			}
		}
		return nil
	})
}

// ctl is kubectl exec etcd-N -- etcdctl, with the environment of the container.
func (p *pods) ctl(n int, set *appsv1.StatefulSet, args ...string) string {
	p.Helper()
	out, err := p.try(n, set, args...)
	must(p, err)
	return out
}

func (p *pods) try(n int, set *appsv1.StatefulSet, args ...string) (string, error) {
	line := []string{"-i"}
	for _, e := range set.Spec.Template.Spec.Containers[0].Env {
		if e.Value != "" {
			line = append(line, e.Name+"="+p.expand(n, e.Value))
		}
	}
	out, err := p.machines.Run(time.Minute, n+1, "env", append(append(line, *etcdctl), args...)...)
	if err != nil {
		return "", fmt.Errorf("etcd-%d: etcdctl %q: %w\n%s", n, args, err, out)
	}
	return out, nil
}

// remove removes a pod's member. It is refused until the others have been connected for some seconds, and then
// retried, as its error text advises.
func (p *pods) remove(n int, set *appsv1.StatefulSet) {
	p.Helper()
	id := p.member(0, set, n)
	child.Eventually(p, limit, fmt.Sprintf("the member of etcd-%d is removed", n), func() error {
		_, err := p.try(0, set, "member", "remove", id)
		return err
	})
}

// list is a pod's view of the members: id, state, name, URLs and whether it is a learner.
func (p *pods) list(from int, set *appsv1.StatefulSet) (rows [][]string) {
	p.Helper()
	for line := range strings.Lines(p.ctl(from, set, "member", "list")) {
		if f := strings.Split(strings.TrimSpace(line), ", "); len(f) > 4 {
			rows = append(rows, f)
		}
	}
	return rows
}

// member is the id of a pod's member.
func (p *pods) member(from int, set *appsv1.StatefulSet, n int) string {
	p.Helper()
	for _, f := range p.list(from, set) {
		if f[2] == fmt.Sprintf("etcd-%d", n) {
			return f[0]
		}
	}
	p.Fatalf("no member is called etcd-%d", n)
	return ""
}

// members waits until exactly these pods are members, and all vote.
func (p *pods) members(set *appsv1.StatefulSet, ordinals ...int) {
	p.Helper()
	want := map[string]string{}
	for _, n := range ordinals {
		want[fmt.Sprintf("etcd-%d", n)] = "started false"
	}
	child.Eventually(p, limit, fmt.Sprintf("members are %v", ordinals), func() error {
		got := map[string]string{}
		for _, f := range p.list(0, set) {
			got[f[2]] = f[1] + " " + f[len(f)-1]
		}
		if d := difference(want, got); d != "" {
			return fmt.Errorf("%s", d)
		}
		return nil
	})
}
