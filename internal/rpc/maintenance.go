package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/clock"
	"quorate/internal/wire"
)

const maintenanceService = "etcdserverpb.Maintenance"

func (e *edge) maintenanceDesc() service {
	return service{
		name: maintenanceService,
		methods: []method{
			unary(e, maintenanceService, "Alarm", e.alarm),
			unary(e, maintenanceService, "Status", e.status),
			unary(e, maintenanceService, "Defragment", rootOnly(e, e.defragment)),
			unary(e, maintenanceService, "Hash", rootOnly(e, e.hash)),
			unary(e, maintenanceService, "HashKV", rootOnly(e, e.hashKV)),
			unary(e, maintenanceService, "MoveLeader", rootOnly(e, e.moveLeader)),
			unary(e, maintenanceService, "Downgrade", rootOnly(e, e.downgrade)),
			{name: "Snapshot", stream: e.snapshot, fromServer: true},
		},
	}
}

func (e *edge) alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	require := e.b.Access.RequireRoot
	if req.Action == pb.AlarmRequest_GET {
		require = e.b.Access.RequireUser
	}
	if err := require(ctx); err != nil {
		return nil, err
	}
	resp, err := e.b.Maintenance.Alarm(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := e.b.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	resp, err := e.b.Maintenance.Status(ctx)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if e.o.NotServingOnDefrag {
		e.health.set(false)
		defer e.health.set(true)
	}
	if err := e.b.Maintenance.Defragment(ctx); err != nil {
		e.lg.Warn("failed to defragment", zap.Error(err))
		return nil, err
	}
	return &pb.DefragmentResponse{}, nil
}

func (e *edge) hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	h, err := e.b.Maintenance.Hash(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: e.fill(nil), Hash: h}, nil
}

func (e *edge) hashKV(ctx context.Context, req *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, err := e.b.Maintenance.HashKV(ctx, req.Revision)
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header:          e.fill(&pb.ResponseHeader{Revision: h.CurrentRev}),
		Hash:            h.Hash,
		CompactRevision: h.CompactRev,
		HashRevision:    h.HashRev,
	}, nil
}

func (e *edge) moveLeader(ctx context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := e.b.Maintenance.MoveLeader(ctx, req.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}

func (e *edge) downgrade(ctx context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	resp, err := e.b.Maintenance.Downgrade(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

// snapshotChunk is the number of file bytes per message.
const snapshotChunk = 32 << 10

// snapshot sends the file in chunks, followed by its SHA-256, which clients append to the
// file and verify on restore.
func (e *edge) snapshot(s *stream) (err error) {
	if err := s.RecvMsg(new(pb.SnapshotRequest)); err != nil {
		return err
	}
	if err := e.b.Access.RequireRoot(s.Context()); err != nil {
		return err
	}
	st, err := e.b.Maintenance.Status(s.Context())
	if err != nil {
		return err
	}
	version := st.StorageVersion
	file, size, err := e.b.Maintenance.SnapshotFile(s.Context())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := file.Close(); cerr != nil {
			e.lg.Warn("failed to close snapshot", zap.Error(cerr))
		}
	}()
	start := clock.Now()
	what := e.lg.With(zap.Int64("total-bytes", size))
	told := []zap.Field{zap.String("size", humanize.Bytes(uint64(size))), zap.String("storage-version", version)}
	what.Info("sending database snapshot to client", told...)
	sum := sha256.New()
	for left := size; left > 0; {
		n := min(left, snapshotChunk)
		left -= n
		p := newPiece(wire.SizeSnapshot(uint64(left), int(n), version))
		b, blob := wire.AppendSnapshot(p.buf, uint64(left), int(n), version)
		if _, err := io.ReadFull(file, blob); err != nil {
			return fmt.Errorf("read snapshot %d bytes before its end: %w", left+n, err)
		}
		sum.Write(blob)
		if err := s.SendMsg(encoded(p.only(b))); err != nil {
			return err
		}
	}
	what.Info("sending database sha256 checksum to client", zap.Int("checksum-size", sha256.Size))
	if err := s.SendMsg(&pb.SnapshotResponse{Blob: sum.Sum(nil), Version: version}); err != nil {
		return err
	}
	what.Info("successfully sent database snapshot to client", append(told, zap.Duration("took", clock.Since(start)))...)
	return nil
}
