package password

import (
	"context"
	"encoding/base64"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Requests about users come with a password and enter the log with its hash, in base64.

// Added prepares the request for a new user: without the option that it shall have no
// password it has one, be it the empty one.
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

// Changed prepares the request for another password. Without one it is the hash that the
// client has sent, and without that either none: nobody can log in as the user then. The
// hash of the empty password would let in everybody.
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

// ErrNoHash says that a request in the log has a password and no hash that can be read.
var ErrNoHash = errors.New("password: no hash in the request")

// Stored returns the hash that a request in the log carries, alike on all members. etcd
// before 3.5 wrote the password itself; no such member can be in a cluster with this one.
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
