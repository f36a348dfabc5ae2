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

// watchServer serves the service Watch.
type watchServer struct {
	identity
	reporter
	watches Watches
}

func (w *watchServer) describe(e *edge) service {
	return service{
		name:    watchService,
		methods: []method{{name: "Watch", stream: w.watch, fromServer: true, fromClient: true}},
	}
}

// watch sends on the goroutine of the call. Requests are received on another goroutine,
// which exists only while there is something to receive: most streams are idle. The side
// that ends first ends the other: the receiver by closing the queue, the sender by ending
// the call, which makes RecvMsg fail.
func (w *watchServer) watch(s *stream) error {
	ws := w.watches.Hub().NewStream(s.Context())
	defer ws.Close()
	received := make(chan error, 1)
	s.h2.OnMessage(func() bool {
		defer crash.Guard()
		err := w.receiveWatch(s, ws)
		if errors.Is(err, io.EOF) {
			return false // a client that has half-closed keeps its watchers
		}
		if err != nil {
			received <- err
			ws.Close()
		}
		return err == nil
	})
	err := w.sendWatch(s, ws)
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
func (w *watchServer) receiveWatch(s *stream, ws *watch.Stream) error {
	c := new(watchCall)
	if err := s.RecvMsg(c); err != nil {
		if !errors.Is(err, io.EOF) {
			w.streamFailed(s, "receive", "watch", err)
		}
		return err
	}
	switch r := c.req.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		return w.watches.CreateWatch(s.Context(), ws, r.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		return ws.Cancel(r.CancelRequest.WatchId)
	case *pb.WatchRequest_ProgressRequest:
		return ws.Progress()
	}
	return nil
}

// sendWatch sends what is queued until the stream ends. It takes everything that is queued
// at a time, so that small responses can share a write.
func (w *watchServer) sendWatch(s *stream, ws *watch.Stream) error {
	ctx := s.Context()
	for {
		r, err := ws.Next(ctx)
		if err != nil {
			return err
		}
		start := clock.Now()
		events, err := w.sendAll(s, ws, r)
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
func (w *watchServer) sendAll(s *stream, ws *watch.Stream, r watch.Response) (events int, err error) {
	b := watch.NewBatch(r, watch.Header{ClusterID: w.clusterID, MemberID: w.memberID, RaftTerm: w.member.Term()})
	defer b.Free()
	for {
		more, err := ws.Take(b)
		if err != nil {
			return events, err
		}
		for i := range b.Responses {
			events += len(b.Responses[i].Events)
		}
		// Responses that are queued together share a write.
		if err := s.sendWatch(b, more); err != nil {
			w.streamFailed(s, "send", "watch", err)
			return events, err
		}
		if !more {
			return events, nil
		}
		b.Clear()
	}
}
