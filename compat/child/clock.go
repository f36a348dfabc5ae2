package child

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// WallClock is the wall clock of one process, which may be set to jump.
//
// Go programs read the time from the vDSO, code that the kernel maps into every process. A library that wraps
// libc does not see that, a time namespace shifts the monotonic clocks only, and a variable that shifts the time
// of a server has no place in a product. So the code in the vDSO of the process is replaced, by a call of the
// kernel whose answer for the wall clock gets an offset. The monotonic clock stays as it is, as on a machine
// whose time is set. It works with every program, etcd included.
type WallClock struct {
	memory string // /proc/PID/mem
	offset int64  // where the offset is, in seconds
}

// ErrNoClock marks a machine on which the wall clock of a process cannot be set.
var ErrNoClock = errors.New("the wall clock of a process cannot be set here")

// The code in place of clock_gettime(clock, time), and the offset behind it.
var gettime = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, SYS_clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x75, 0x10, // jne done
	0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
	0x75, 0x0c, // jne done
	0x48, 0x8b, 0x05, 0x0a, 0x00, 0x00, 0x00, // mov rax, [offset]
	0x48, 0x01, 0x06, // add [rsi], rax
	0x31, 0xc0, // xor eax, eax
	0xc3,                   // done: ret
	0x90, 0x90, 0x90, 0x90, // up to the offset, at 32
	0, 0, 0, 0, 0, 0, 0, 0,
}

// TakeClock takes over the wall clock of a process that was just started: program is its file.
func TakeClock(pid int, program string) (*WallClock, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: not written for %s", ErrNoClock, runtime.GOARCH)
	}
	deadline := time.Now().Add(10 * time.Second)
	var start int64
	var code []byte
	for { // until ip, which starts it, has become the program, and the program has its memory
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(exe) == filepath.Base(program) {
			if start, code, err = vdso(pid); err == nil {
				break
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("process %d is %q, not %s: %w", pid, exe, program, err)
		}
		if err != nil && syscall.Kill(pid, 0) != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
	at, err := symbol(code, "__vdso_clock_gettime")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoClock, err)
	}
	c := &WallClock{memory: fmt.Sprintf("/proc/%d/mem", pid), offset: start + at + 32}
	for time.Now().Before(deadline) {
		// No thread may be inside the code while it is replaced.
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return nil, err
		}
		outside := false
		for try := 0; !outside && try < 100; try++ { // it takes a moment until all of them have stopped
			time.Sleep(time.Millisecond)
			outside = outsideOf(pid, uint64(start), uint64(start)+uint64(len(code)))
		}
		if outside {
			err = c.write(start+at, gettime)
		}
		if cont := syscall.Kill(pid, syscall.SIGCONT); err != nil || cont != nil {
			return nil, errors.Join(err, cont)
		}
		if outside {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: process %d does not leave its vDSO", ErrNoClock, pid)
}

// Jump makes the wall clock differ from the real one by so much.
func (c *WallClock) Jump(by time.Duration) error {
	return c.write(c.offset, binary.LittleEndian.AppendUint64(nil, uint64(int64(by/time.Second))))
}

func (c *WallClock) write(at int64, b []byte) error {
	f, err := os.OpenFile(c.memory, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteAt(b, at); err != nil {
		return fmt.Errorf("%w: %w", ErrNoClock, err)
	}
	return nil
}

// vdso returns where the vDSO of a process begins, and its bytes.
func vdso(pid int) (start int64, code []byte, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(line, "[vdso]\n") {
			continue
		}
		from, to, _ := strings.Cut(strings.Fields(line)[0], "-")
		first, err := strconv.ParseUint(from, 16, 63)
		if err != nil {
			return 0, nil, err
		}
		last, err := strconv.ParseUint(to, 16, 63)
		if err != nil {
			return 0, nil, err
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return 0, nil, err
		}
		defer f.Close()
		code = make([]byte, last-first)
		_, err = f.ReadAt(code, int64(first))
		return int64(first), code, err
	}
	return 0, nil, fmt.Errorf("%w: process %d has no vDSO", ErrNoClock, pid)
}

// symbol returns the offset of a function in the vDSO.
func symbol(code []byte, name string) (int64, error) {
	f, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == name {
			return int64(s.Value), nil
		}
	}
	return 0, fmt.Errorf("the vDSO has no %s", name)
}

// outsideOf reports whether all threads of a process have stopped outside of a range of addresses.
func outsideOf(pid int, from, to uint64) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(tasks) == 0 {
		return false
	}
	for _, task := range tasks {
		// "NUMBER ARGUMENTS... SP PC", "-1 SP PC", or "running".
		b, err := os.ReadFile(task)
		words := strings.Fields(string(b))
		if err != nil || len(words) < 3 {
			return false
		}
		pc, err := strconv.ParseUint(words[len(words)-1], 0, 64)
		if err != nil || pc >= from && pc < to {
			return false
		}
	}
	return true
}
