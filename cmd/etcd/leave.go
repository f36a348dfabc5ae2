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

// leaver writes etcd's files when a member ends during a downgrade, so that the
// older etcd can be started in its place, as etcd's documents say.
type leaver struct {
	cfg    server.Config
	lg     *zap.Logger
	notify func(status string)
}

// leave does so for the release that the downgrade leads to. A signal meanwhile ends
// it, and so does a failure: the directory is this program's then, as after any stop.
func (l leaver) leave(target membership.Version, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	release := fmt.Sprintf("%d.%d", target.Major, target.Minor)
	l.lg.Info("a downgrade is enabled: leaving the files of etcd", zap.String("data-dir", l.cfg.DataDir), zap.String("release", release))
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
		case <-time.After(giveUp): // a full disk, say; the next start removes what there is
			err = context.Canceled
		}
	}
	if err != nil {
		l.lg.Error("etcd cannot be started on the directory, this program can; run 'etcdutl migrate --to-etcd' when the reason is gone",
			zap.String("data-dir", l.cfg.DataDir), zap.String("release", release), zap.Error(err))
		return
	}
	l.notify("stopped; the directory is for etcd " + release + " or this program")
}

// giveUp is how long the work may take to end once it is not wanted any more.
const giveUp = 5 * time.Second

// extension is how long systemd is asked to wait for the next status at a stop.
const extension = 30 * time.Second

// notifyStopping tells systemd how a stop goes on, and that it needs more time.
func notifyStopping(status string) {
	// Without systemd there is nobody to tell, and a failure holds nothing up.
	_, _ = daemon.SdNotify(false, fmt.Sprintf("STOPPING=1\nSTATUS=%s\nEXTEND_TIMEOUT_USEC=%d", status, extension.Microseconds()))
}
