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
	"quorate/internal/ids"
	"quorate/internal/wire"
)

const maintenanceService = "etcdserverpb.Maintenance"

// maintenanceServer serves the service Maintenance.
type maintenanceServer struct {
	identity
	maintenance Maintenance
	access      Access
	lg          *zap.Logger
	// health, if not nil, reports NOT_SERVING during a defragmentation.
	health *healthSwitch
}

func (m *maintenanceServer) describe(e *edge) service {
	return service{
		name: maintenanceService,
		methods: []method{
			unary(e, maintenanceService, "Alarm", m.alarm),
			unary(e, maintenanceService, "Status", m.status),
			unary(e, maintenanceService, "Defragment", rootOnly(m.access, m.defragment)),
			unary(e, maintenanceService, "Hash", rootOnly(m.access, m.hash)),
			unary(e, maintenanceService, "HashKV", rootOnly(m.access, m.hashKV)),
			unary(e, maintenanceService, "MoveLeader", rootOnly(m.access, m.moveLeader)),
			unary(e, maintenanceService, "Downgrade", rootOnly(m.access, m.downgrade)),
			{name: "Snapshot", stream: m.snapshot, fromServer: true},
		},
	}
}

func (m *maintenanceServer) alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	require := m.access.RequireRoot
	if req.Action == pb.AlarmRequest_GET {
		require = m.access.RequireUser
	}
	if err := require(ctx); err != nil {
		return nil, err
	}
	resp, err := m.maintenance.Alarm(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = m.fill(resp.Header)
	return resp, nil
}

func (m *maintenanceServer) status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := m.access.RequireUser(ctx); err != nil {
		return nil, err
	}
	resp, err := m.maintenance.Status(ctx)
	if err != nil {
		return nil, err
	}
	resp.Header = m.fill(resp.Header)
	return resp, nil
}

func (m *maintenanceServer) defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if m.health != nil {
		m.health.set(false)
		defer m.health.set(true)
	}
	if err := m.maintenance.Defragment(ctx); err != nil {
		m.lg.Warn("failed to defragment", zap.Error(err))
		return nil, err
	}
	return &pb.DefragmentResponse{}, nil
}

func (m *maintenanceServer) hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	h, err := m.maintenance.Hash(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: m.fill(nil), Hash: h}, nil
}

func (m *maintenanceServer) hashKV(ctx context.Context, req *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, err := m.maintenance.HashKV(ctx, ids.Revision(req.Revision))
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header:          m.fill(&pb.ResponseHeader{Revision: int64(h.CurrentRev)}),
		Hash:            h.Hash,
		CompactRevision: int64(h.CompactRev),
		HashRevision:    int64(h.HashRev),
	}, nil
}

func (m *maintenanceServer) moveLeader(ctx context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := m.maintenance.MoveLeader(ctx, ids.Member(req.TargetID)); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}

func (m *maintenanceServer) downgrade(ctx context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	resp, err := m.maintenance.Downgrade(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = m.fill(resp.Header)
	return resp, nil
}

// snapshotChunk is the number of file bytes per message.
const snapshotChunk = 32 << 10

// snapshot sends the file in chunks, followed by its SHA-256, which clients append to the
// file and verify on restore.
func (m *maintenanceServer) snapshot(s *stream) (err error) {
	if err := s.RecvMsg(new(pb.SnapshotRequest)); err != nil {
		return err
	}
	if err := m.access.RequireRoot(s.Context()); err != nil {
		return err
	}
	st, err := m.maintenance.Status(s.Context())
	if err != nil {
		return err
	}
	version := st.StorageVersion
	file, size, err := m.maintenance.SnapshotFile(s.Context())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := file.Close(); cerr != nil {
			m.lg.Warn("failed to close snapshot", zap.Error(cerr))
		}
	}()
	start := clock.Now()
	what := m.lg.With(zap.Int64("total-bytes", size))
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
