package rpc

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/metrics"
	"quorate/internal/watch"
)

const watchService = "etcdserverpb.Watch"

func (e *edge) watchDesc() service {
	return service{
		name:    watchService,
		methods: []method{{name: "Watch", stream: e.watch, fromServer: true, fromClient: true}},
	}
}

// watch sends on the goroutine of the call. What the client sends is received on
// another one, which there is only while there is something to receive: most
// streams are silent. Whichever ends first ends the other: the receiver by closing
// the queue, the sender by ending the call, which makes the receiver's RecvMsg fail.
func (e *edge) watch(s *stream) error {
	ws := e.b.Watches.Hub().NewStream(s.Context())
	defer ws.Close()
	received := make(chan error, 1)
	s.h2.OnMessage(func() bool {
		defer crash.Guard()
		err := e.receiveWatch(s, ws)
		if errors.Is(err, io.EOF) {
			return false // a client that has said all it has to say keeps its watchers
		}
		if err != nil {
			received <- err
			ws.Close()
		}
		return err == nil
	})
	err := e.sendWatch(s, ws)
	select {
	case rerr := <-received:
		if !errors.Is(rerr, watch.ErrClosed) {
			err = rerr
		}
	default:
	}
	if s.Context().Err() != nil {
		err = endOf(s.Context())
	}
	switch {
	case errors.Is(err, watch.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// receiveWatch takes a request; io.EOF says that the client has no more.
func (e *edge) receiveWatch(s *stream, ws *watch.Stream) error {
	c := new(watchCall)
	if err := s.RecvMsg(c); err != nil {
		if !errors.Is(err, io.EOF) {
			e.streamFailed(s, "receive", "watch", err)
		}
		return err
	}
	switch r := c.req.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		return e.b.Watches.CreateWatch(s.Context(), ws, r.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		return ws.Cancel(r.CancelRequest.WatchId)
	case *pb.WatchRequest_ProgressRequest:
		return ws.Progress()
	}
	return nil
}

// watchSender sends the responses of one watch stream.
type watchSender struct {
	e     *edge
	s     *stream
	reply watchReply
}

// sendWatch sends what is queued until the stream ends. It takes all that is
// there at a time, so that small responses can travel together.
func (e *edge) sendWatch(s *stream, ws *watch.Stream) error {
	ctx := s.Context()
	out := watchSender{e: e, s: s}
	for {
		r, err := ws.Next(ctx)
		if err != nil {
			return err
		}
		start := clock.Now()
		events, err := out.sendAll(r, ws)
		if err != nil {
			return err
		}
		took := clock.Since(start).Seconds()
		if events == 0 {
			metrics.DebuggingServerWatchSendLoopControlStreamDurationSeconds.Observe(took)
			continue
		}
		metrics.DebuggingServerWatchSendLoopWatchStreamDurationSeconds.Observe(took)
		metrics.DebuggingServerWatchSendLoopWatchStreamDurationPerEventSeconds.Observe(took / float64(events))
	}
}

// sendAll sends r and what is queued behind it, and counts the events.
func (w *watchSender) sendAll(r watch.Response, ws *watch.Stream) (events int, err error) {
	h := watch.Header{ClusterID: w.e.clusterID, MemberID: w.e.memberID, RaftTerm: w.e.b.Member.Term()}
	for {
		next, more, err := ws.TryNext()
		if err != nil {
			return events, err
		}
		events += len(r.Events)
		// Watchers of one stream that see the same event make a row of small
		// messages; those that are there together go out together.
		w.reply = watchReply{header: h, res: r}
		if err := w.s.sendWatch(&w.reply, more); err != nil {
			w.e.streamFailed(w.s, "send", "watch", err)
			return events, err
		}
		if !more {
			return events, nil
		}
		r = next
	}
}
