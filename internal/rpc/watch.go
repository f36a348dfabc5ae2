package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
func (e *edge) watch(_ any, s grpc.ServerStream) error {
	ws := e.b.Watch().NewStream(s.Context())
	defer ws.Close()
	received := make(chan error, 1)
	go func() {
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
			err = ws.Create(r.CreateRequest)
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

// sendWatch sends what is queued until the stream ends.
func (e *edge) sendWatch(s grpc.ServerStream, ws *watch.Stream) error {
	ctx := s.Context()
	for {
		r, err := ws.Next(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		n := len(r.Events)
		h := watch.Header{ClusterID: e.clusterID, MemberID: e.memberID, RaftTerm: e.b.Term()}
		if err := s.SendMsg(&watchReply{header: h, res: r}); err != nil {
			e.streamFailed(s, "send", "watch", err)
			return err
		}
		took := time.Since(start).Seconds()
		if n == 0 {
			metrics.DebuggingServerWatchSendLoopControlStreamDurationSeconds.Observe(took)
			continue
		}
		metrics.DebuggingServerWatchSendLoopWatchStreamDurationSeconds.Observe(took)
		metrics.DebuggingServerWatchSendLoopWatchStreamDurationPerEventSeconds.Observe(took / float64(n))
	}
}
