package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"quorate/internal/crash"
	"quorate/internal/metrics"
	"quorate/internal/watch"
)

const watchService = "etcdserverpb.Watch"

func (e *edge) watchDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: watchService,
		Streams:     []grpc.StreamDesc{{StreamName: "Watch", Handler: e.watch, ServerStreams: true, ClientStreams: true}},
	}
}

// watch sends on the goroutine of the call and receives on one of its own.
// Whichever ends first ends the other: the receiver by closing the queue, the
// sender by ending the call, which makes the receiver's RecvMsg fail.
func (e *edge) watch(_ any, ss grpc.ServerStream) error {
	s := ss.(*stream) // as the interceptor has made it
	ws := e.b.Hub().NewStream(s.Context())
	defer ws.Close()
	received := make(chan error, 1)
	go func() {
		defer crash.Guard()
		// A client that has said all it has to say keeps its watchers.
		if err := e.receiveWatch(s, ws); err != nil {
			received <- err
			ws.Close()
		}
	}()
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

// receiveWatch takes requests until the client has no more, or an error.
func (e *edge) receiveWatch(s grpc.ServerStream, ws *watch.Stream) error {
	for {
		c := new(watchCall)
		if err := s.RecvMsg(c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			e.streamFailed(s, "receive", "watch", err)
			return err
		}
		var err error
		switch r := c.req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = e.b.CreateWatch(s.Context(), ws, r.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = ws.Cancel(r.CancelRequest.WatchId)
		case *pb.WatchRequest_ProgressRequest:
			err = ws.Progress()
		}
		if err != nil {
			return err
		}
	}
}

// watchSender sends the responses of one watch stream.
type watchSender struct {
	e     *edge
	s     *stream
	batch *batcher // nil until there is a use for it
	plain bool     // batches are out of the question
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
		start := time.Now()
		events, err := out.sendAll(r, ws)
		if err != nil {
			return err
		}
		took := time.Since(start).Seconds()
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
	h := watch.Header{ClusterID: w.e.clusterID, MemberID: w.e.memberID, RaftTerm: w.e.b.Term()}
	for {
		next, more, err := ws.TryNext()
		if err != nil {
			return events, err
		}
		events += len(r.Events)
		if err := w.send(r, h, more); err != nil {
			w.e.streamFailed(w.s, "send", "watch", err)
			return events, err
		}
		if !more {
			return events, nil
		}
		r = next
	}
}

// send sends r, or adds it to a batch, which is sent when it is full or when
// there is nothing more for it.
func (w *watchSender) send(r watch.Response, h watch.Header, more bool) error {
	size := watchHead
	for _, ev := range r.Events {
		size += len(ev)
	}
	size += len(r.CancelReason)
	began := w.batch != nil && w.batch.count > 0
	if w.plain || size >= batchPart || !more && !began {
		if began {
			if err := w.batch.flush(); err != nil {
				return err
			}
		}
		return w.s.SendMsg(&watchReply{header: h, res: r})
	}
	if w.batch == nil {
		if w.batch = newBatcher(w.s); w.batch == nil {
			w.plain = true
			return w.s.SendMsg(&watchReply{header: h, res: r})
		}
	}
	if !w.batch.fits(size) {
		if err := w.batch.flush(); err != nil {
			return err
		}
	}
	w.batch.add(r.AppendTo(w.batch.next(), h))
	if more {
		return nil
	}
	return w.batch.flush()
}

// watchHead is the most that a response takes beside its events and the reason
// of its end: a header of four numbers, three more numbers, and flags.
const watchHead = 96
