package child

import (
	"fmt"
	"testing"
	"time"
)

// Machines are network namespaces joined by a bridge: machine i, from 1, is called etcd-i, has the address
// 10.0.0.i and its own loopback. The host that has the bridge is 10.0.0.254.
type Machines int

// NewMachines creates n machines in the namespaces of this process; see Isolated.
func NewMachines(t testing.TB, n int) Machines {
	t.Helper()
	// ip keeps the names of namespaces in /run/netns. Only this process sees this mount.
	Must(t, "mount", "-t", "tmpfs", "none", "/run")
	Must(t, "ip", "link", "set", "lo", "up")
	Must(t, "ip", "link", "add", "bridge0", "type", "bridge")
	Must(t, "ip", "addr", "add", "10.0.0.254/24", "dev", "bridge0")
	Must(t, "ip", "link", "set", "bridge0", "up")
	m := Machines(n)
	for i := 1; i <= n; i++ {
		ns := m.Name(i)
		Must(t, "ip", "netns", "add", ns)
		Must(t, "ip", "link", "add", m.link(i), "type", "veth", "peer", "name", "eth0", "netns", ns)
		Must(t, "ip", "-n", ns, "link", "set", "lo", "up")
		Must(t, "ip", "-n", ns, "addr", "add", m.IP(i)+"/24", "dev", "eth0")
		Must(t, "ip", "-n", ns, "link", "set", "eth0", "up")
		Must(t, "ip", "link", "set", m.link(i), "up")
		m.Plug(t, i)
	}
	return m
}

func (Machines) link(i int) string { return fmt.Sprintf("host%d", i) }

// Name is the name of machine i.
func (Machines) Name(i int) string { return fmt.Sprintf("etcd-%d", i) }

// IP is the address of machine i.
func (Machines) IP(i int) string { return fmt.Sprintf("10.0.0.%d", i) }

// Plug connects machine i to the bridge.
func (m Machines) Plug(t testing.TB, i int) {
	Must(t, "ip", "link", "set", m.link(i), "master", "bridge0")
}

// Unplug cuts machine i off.
func (m Machines) Unplug(t testing.TB, i int) { Must(t, "ip", "link", "set", m.link(i), "nomaster") }

// On is the command line that runs a program on machine i, for Start with the program "ip".
func (m Machines) On(i int, program string, args ...string) []string {
	return append([]string{"netns", "exec", m.Name(i), program}, args...)
}

// Run runs a program on machine i to completion and returns its output.
func (m Machines) Run(limit time.Duration, i int, program string, args ...string) (string, error) {
	return Run(limit, "ip", m.On(i, program, args...)...)
}
