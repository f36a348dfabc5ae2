package server

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

var (
	errReadTimeout   = rpctypes.ErrGRPCTimeout
	errLeaderChanged = rpctypes.ErrGRPCLeaderChanged
	errUnknownMethod = errors.New("etcdserver: unknown method")
	errStopped       = rpctypes.ErrGRPCStopped
)
