package harness

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticksPerSecond is USER_HZ, the unit of CPU times in /proc. It is 100 on every Linux
// architecture that Go runs on, whatever the kernel's own tick is.
const ticksPerSecond = 100

// childAttr makes the kernel kill the server when the lane itself is killed.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// CPU is the user plus system time of the process so far, in steps of 10 ms
// (proc(5): fields 14 and 15 of /proc/PID/stat).
func (m *Member) CPU() (time.Duration, error) { return CPU(m.Pid()) }

// CPU is the same for any running process.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseStat(string(b))
}

func parseStat(s string) (time.Duration, error) {
	// The second field is the command in parentheses and may contain spaces.
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return 0, errors.New("read CPU time: stat has no command field")
	}
	f := strings.Fields(s[i+1:]) // f[0] is field 3
	if len(f) < 13 {
		return 0, fmt.Errorf("read CPU time: stat has only %d fields", len(f)+2)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(user+system) * (time.Second / ticksPerSecond), nil
}

// Memory is what /proc/PID/status says, in bytes.
type Memory struct {
	Resident int64 // VmRSS
	Own      int64 // RssAnon: the part of it that is not backed by files
	Peak     int64 // VmHWM: highest resident size since the start or the last ResetPeak
}

// Memory reads the process's resident size and its peak.
func (m *Member) Memory() (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Pid()))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	return parseStatus(string(b))
}

func parseStatus(s string) (Memory, error) {
	var mem Memory
	for line := range strings.Lines(s) {
		name, rest, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &mem.Resident
		case "RssAnon":
			to = &mem.Own
		case "VmHWM":
			to = &mem.Peak
		default:
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("read memory: %s: %w", name, err)
		}
		*to = kb << 10
	}
	if mem.Resident == 0 {
		return Memory{}, errors.New("read memory: status has no VmRSS")
	}
	return mem, nil
}

// ResetPeak makes Memory().Peak start again from the current resident size (proc(5): "5" to
// /proc/PID/clear_refs).
func (m *Member) ResetPeak() error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", m.Pid()), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak memory: %w", err)
	}
	return nil
}
