package password

import (
	"context"
	"encoding/base64"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Requests about users arrive with a password and enter the log with its hash, in base64.

// Added prepares a request for a new user. Unless it sets the option no-password, the
// user gets a password, possibly the empty one.
func (h *Hasher) Added(ctx context.Context, r *pb.AuthUserAddRequest) error {
	if !r.Options.GetNoPassword() {
		hash, err := h.Hash(ctx, r.Password)
		if err != nil {
			return err
		}
		r.HashedPassword = base64.StdEncoding.EncodeToString(hash)
	}
	r.Password = ""
	return nil
}

// Changed prepares a request for a new password. Without one it keeps the hash that
// the client sent. If there is none either, the user has no hash and cannot log in: the
// hash of the empty password would let anyone in.
func (h *Hasher) Changed(ctx context.Context, r *pb.AuthUserChangePasswordRequest) error {
	if r.Password == "" {
		return nil
	}
	hash, err := h.Hash(ctx, r.Password)
	if err != nil {
		return err
	}
	r.HashedPassword, r.Password = base64.StdEncoding.EncodeToString(hash), ""
	return nil
}

// ErrNoHash means that a request in the log has a password but no valid hash.
var ErrNoHash = errors.New("password: no hash in the request")

// Stored returns the hash in a request of the log, the same on all members. etcd before
// 3.5 logged the password itself; such a member cannot share a cluster with this one.
func Stored(password, hashed string) ([]byte, error) {
	if password != "" && hashed == "" {
		return nil, ErrNoHash
	}
	hash, err := base64.StdEncoding.DecodeString(hashed)
	if err != nil {
		return nil, ErrNoHash
	}
	return hash, nil
}
