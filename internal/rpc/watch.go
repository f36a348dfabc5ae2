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

// watch sends on the goroutine of the call. Requests are received on another goroutine,
// which exists only while there is something to receive: most streams are idle. The side
// that ends first ends the other: the receiver by closing the queue, the sender by ending
// the call, which makes RecvMsg fail.
func (e *edge) watch(s *stream) error {
	ws := e.b.Watches.Hub().NewStream(s.Context())
	defer ws.Close()
	received := make(chan error, 1)
	s.h2.OnMessage(func() bool {
		defer crash.Guard()
		err := e.receiveWatch(s, ws)
		if errors.Is(err, io.EOF) {
			return false // a client that has half-closed keeps its watchers
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

// receiveWatch handles one request; io.EOF means that the client sends no more.
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

// sendWatch sends what is queued until the stream ends. It takes everything that is queued
// at a time, so that small responses can share a write.
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

// sendAll sends r and the responses queued after it, and counts the events.
func (w *watchSender) sendAll(r watch.Response, ws *watch.Stream) (events int, err error) {
	h := watch.Header{ClusterID: w.e.clusterID, MemberID: w.e.memberID, RaftTerm: w.e.b.Member.Term()}
	for {
		next, more, err := ws.TryNext()
		if err != nil {
			return events, err
		}
		events += len(r.Events)
		// Watchers of one stream that match the same event cause a series of small messages;
		// those that are queued together share a write.
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
