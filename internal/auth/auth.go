// Package auth decides which user may access which keys. It holds the users, the
// roles, their permissions on ranges of keys, and the tokens of users who have
// logged in.
//
// In: the auth requests of the log, in order, from one goroutine; the stored
// users and roles; tokens that clients send. Out: the records of etcd's buckets
// auth, authUsers and authRoles, written into the batch of the entry; a State,
// which answers whether a user may access a range of keys; the user of a token.
// Always true: the outcome of an entry depends on the log alone, so all members
// agree, members of etcd included; a State that a reader holds never changes; no
// password is hashed or compared in this package.
//
// Rules, records and error texts are etcd's. Tokens are not part of the
// replicated state: each member keeps them in memory and loses them when it exits.
package auth

import "errors"

// Errors of requests, in etcd's words. Package rpc maps most of them to the text
// and code that clients know; the others reach clients unchanged.
var (
	ErrRootUserNotExist     = errors.New("auth: root user does not exist")
	ErrRootRoleNotExist     = errors.New("auth: root user does not have root role")
	ErrUserAlreadyExist     = errors.New("auth: user already exists")
	ErrUserEmpty            = errors.New("auth: user name is empty")
	ErrUserNotFound         = errors.New("auth: user not found")
	ErrRoleAlreadyExist     = errors.New("auth: role already exists")
	ErrRoleNotFound         = errors.New("auth: role not found")
	ErrRoleEmpty            = errors.New("auth: role name is empty")
	ErrPermissionNotGiven   = errors.New("auth: permission not given")
	ErrAuthFailed           = errors.New("auth: authentication failed, invalid user ID or password")
	ErrNoPasswordUser       = errors.New("auth: authentication failed, password was given for no password user")
	ErrPermissionDenied     = errors.New("auth: permission denied")
	ErrRoleNotGranted       = errors.New("auth: role is not granted to the user")
	ErrPermissionNotGranted = errors.New("auth: permission is not granted to the role")
	ErrAuthNotEnabled       = errors.New("auth: authentication is not enabled")
	ErrAuthOldRevision      = errors.New("auth: revision in header is old")
	ErrInvalidAuthToken     = errors.New("auth: invalid auth token")
	ErrInvalidAuthMgmt      = errors.New("auth: invalid auth management")
)

// Errors of --auth-token, and of signing with the configured key.
var (
	ErrInvalidAuthOpts = errors.New("auth: invalid auth options")
	ErrMissingKey      = errors.New("auth: missing key data")
	ErrKeyMismatch     = errors.New("auth: public and private keys don't match")
	ErrVerifyOnly      = errors.New("auth: token signing attempted with verify-only key")
)

// Root is the name of the user that must exist while authentication is on, and
// of the role that may do everything.
const Root = "root"

// Info is the user that makes a request, and the revision of the auth store at
// which the user was authenticated. The zero value means no user.
type Info struct {
	User string
	Rev  uint64
}
