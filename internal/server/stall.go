package server

import (
	"time"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/replica"
)

// watchLog is called once per tick and returns for how long a log write has been seen to
// hang. After the process was suspended, its clock jumps ahead through no fault of the
// disk, so only observed ticks count.
func (d *driver) watchLog() time.Duration {
	since := d.logw.logSince.Load()
	if since == 0 || since != d.watched {
		d.watched, d.watchedTicks = since, 0
		return 0
	}
	d.watchedTicks++
	return min(d.logw.logStall(), time.Duration(d.watchedTicks)*d.cfg.Tick)
}

// reportStall logs the consequences of a stall, once each. It must be called with coreMu
// held.
func (d *driver) reportStall(s replica.Stall, took time.Duration) {
	if took <= d.cfg.electionTimeout() {
		return
	}
	say := func(kind, text string, more ...zap.Field) {
		if said := d.logw.stalled.Load(); said != nil && *said == kind {
			return
		}
		d.logw.stalled.Store(&kind)
		d.lg.Warn("the disk of the raft log has not finished a write for longer than the election timeout: "+text,
			append(more, zap.String("dir", d.cfg.logDir()), zap.Duration("took", took))...)
	}
	switch {
	case s.HandOver != ids.NoMember:
		kind := "to " + s.HandOver.String()
		say(kind, "leadership is handed over; look after the disk of this member",
			zap.Stringer("local-member-id", d.replica.id), zap.Stringer("to", s.HandOver))
	case s.Alone:
		say("alone", "this member keeps leading because no majority of the others has proved that its disks work; writes wait for the disk")
	case d.replica.Leader() != d.replica.id:
		say("behind", "writes and linearizable reads on this member time out until it has; the others serve them")
	}
}

// logStall returns how long the log write in flight has taken.
func (l *logWriter) logStall() time.Duration {
	since := l.logSince.Load()
	if since == 0 {
		return 0
	}
	return l.cfg.Clock.Now().Sub(l.replica.opened) - time.Duration(since)
}

// timeLog records the start of a log write; the returned function records its end.
func (l *logWriter) timeLog() (end func()) {
	l.logSince.Store(max(1, int64(l.cfg.Clock.Now().Sub(l.replica.opened))))
	return func() {
		took := l.logStall()
		l.logSince.Store(0)
		if l.stalled.Swap(nil) != nil {
			l.lg.Info("the disk of the raft log has finished the write that hung", zap.String("dir", l.cfg.logDir()), zap.Duration("took", took))
		}
	}
}
