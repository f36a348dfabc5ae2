package sim

import (
	"context"
	"errors"
	"strings"

	"quorate/internal/datadir"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// A member's directory is converted into one of etcd 3.5 and, at the next start, back, while
// the cluster goes on: as when an operator returns to etcd and changes his mind. Power may
// fail at each step of both.

// handing says what is to be done with the directory of a stopped member.
type handing int

const (
	staying handing = iota
	leaving         // it is converted for etcd
	beside          // etcd's files are written next to ours
)

// convert stops a member in order and lets its directory be converted.
func (w *World) convert() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if n.down || !n.joined() || n.leaving {
		return
	}
	if err := n.machine.Engine().Flush(context.Background()); err != nil {
		w.fail("flush member %d: %w", n.index, err)
	}
	w.log("convert %d at %d", n.index, n.machine.Applied())
	n.stop()
	n.handing = leaving + handing(w.rng.IntN(2))
	n.start()
}

func (n *node) convertOptions() datadir.Options {
	return datadir.Options{Version: n.release, OpenEngine: n.disk.openEngine}
}

// handOver converts the directory for etcd. It returns false if the member is to be started
// later: power was lost, or the directory is etcd's for a while.
func (n *node) handOver() bool {
	w, to := n.w, n.handing
	lost, err := n.offline("conversion for etcd", func() (err error) {
		if to == beside {
			return datadir.LeaveBeside(context.Background(), n.layout(), membership.V35, n.convertOptions())
		}
		_, err = datadir.Leave(context.Background(), n.layout(), membership.V35, n.convertOptions())
		return err
	})
	switch {
	case lost:
	case errors.Is(err, raftlog.ErrNoSpace):
		w.did["conversion without room"]++ // repeated
	case err == nil || strings.Contains(err.Error(), "is a directory of etcd already") || to == beside && strings.Contains(err.Error(), "there is no store in"):
		// The last two: power was lost after the last step of an earlier attempt.
		n.handing = staying
		w.did["conversion for etcd"]++
		w.log("converted %d", n.index)
	case strings.Contains(err.Error(), "start the member once"):
		n.handing = staying
		w.did["conversion put off"]++
		return true
	default:
		w.fail("convert the directory of member %d for etcd: %w", n.index, err)
	}
	w.after(w.between(0, w.faults.Outage), n.start)
	return false
}

// offline runs a step of file work of a stopped member. It reports whether power was lost
// in the middle of it: then the disk is what that has left.
func (n *node) offline(step string, do func() error) (lost bool, err error) {
	if w := n.w; !w.calm && w.chance(3*w.faults.TornSteps) {
		n.disk.countdown = 1 + w.rng.IntN(30)
	}
	err = do()
	picture := n.disk.picture
	n.disk.countdown, n.disk.picture = 0, nil
	if picture == nil {
		return false, err
	}
	n.w.log("power lost at %d during %s", n.index, step)
	n.w.torn[step]++
	n.disk = picture
	return true, nil
}

// takeOver begins to take over the directory if it is etcd's, as every start does.
func (n *node) takeOver() (*datadir.Takeover, error) {
	taken, err := datadir.Begin(context.Background(), n.layout(), n.convertOptions())
	if taken != nil {
		n.w.did["take-over"]++
		n.w.log("take over %d at %d", n.index, taken.Index)
	}
	return taken, err
}

// finishTakeOver switches to the store that was taken over.
func (n *node) finishTakeOver(taken *datadir.Takeover) error {
	if taken == nil {
		return nil
	}
	if err := n.home.BeginLog(taken.Index, n.machine.ConfState()); err != nil {
		return err
	}
	return taken.Finish()
}

// openConverted is open, in which power may be lost.
func (n *node) openConverted() error {
	opened := false
	lost, err := n.offline("take-over", func() error {
		err := n.open()
		opened = err == nil
		return err
	})
	if !lost {
		return err
	}
	if opened {
		n.hub.Close()
		n.machine.Close()
		n.log.Close()
	}
	return errPower
}

var errPower = errors.New("sim: power lost during the start")
