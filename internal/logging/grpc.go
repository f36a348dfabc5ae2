package logging

import (
	"io"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

// SetGlobal makes lg the logger of zap and, at level debug, of gRPC, whose
// warnings and errors otherwise go to standard error, 20 lines a second at most. It is for the main
// function: the settings are the process's.
func SetGlobal(lg *zap.Logger, debug bool) {
	grpc.EnableTracing = debug
	if debug {
		grpclog.SetLoggerV2(zapgrpc.NewLogger(lg))
	} else {
		few := NewLimited(os.Stderr)
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, few, few))
	}
	zap.ReplaceGlobals(lg)
}
