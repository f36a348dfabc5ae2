package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/server"
)

// leaver writes etcd's files when a member stops during a downgrade, so that the older etcd
// can be started in its place, as etcd's documentation says.
type leaver struct {
	cfg    server.Config
	lg     *zap.Logger
	notify func(status string)
}

// leave converts the directory for the release that the downgrade targets. A signal cancels
// it, and a failure stops it; the directory then stays in this program's format, as after
// any other stop.
func (l leaver) leave(target membership.Version, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	release := fmt.Sprintf("%d.%d", target.Major, target.Minor)
	l.lg.Info("a downgrade is enabled: converting the data directory for etcd", zap.String("data-dir", l.cfg.DataDir), zap.String("release", release))
	l.notify("writing the files of etcd " + release)
	go func() { done <- l.cfg.LeaveFor(ctx, target, l.notify) }()
	var err error
	select {
	case err = <-done:
	case s := <-signals:
		l.lg.Warn("received signal; giving up", zap.String("signal", s.String()))
		cancel()
		select {
		case err = <-done:
		case <-time.After(giveUp): // a full disk, for example; the next start removes the incomplete files
			err = context.Canceled
		}
	}
	if err != nil {
		l.lg.Error("the data directory stays in the format of this program, and etcd cannot start on it; fix the cause and run 'etcdutl migrate --to-etcd'",
			zap.String("data-dir", l.cfg.DataDir), zap.String("release", release), zap.Error(err))
		return
	}
	l.notify("stopped; the directory is for etcd " + release + " or this program")
}

// giveUp is how long the conversion may take to stop once it is cancelled.
const giveUp = 5 * time.Second

// extension is how long systemd is asked to wait for the next status during a stop.
const extension = 30 * time.Second

// notifyStopping reports the progress of a stop to systemd, and asks for more time.
func notifyStopping(status string) {
	// Without systemd this does nothing, and a failure does not matter.
	_, _ = daemon.SdNotify(false, fmt.Sprintf("STOPPING=1\nSTATUS=%s\nEXTEND_TIMEOUT_USEC=%d", status, extension.Microseconds()))
}
