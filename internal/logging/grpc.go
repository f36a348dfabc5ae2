package logging

import (
	"io"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

// SetGlobal makes lg the global logger of zap and, at level debug, of gRPC. At other levels
// gRPC's warnings and errors go to standard error, at most 20 lines a second. Only main
// functions may call it: the settings apply to the whole process.
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
