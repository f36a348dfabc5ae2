// Package gateway compares what two servers answer over JSON: unary calls of every service, errors, malformed
// requests, streams, and streams over websockets.
//
// In: two server binaries, real etcd 3.7 and the one under test. Both get the same requests. Out: test failures
// that name the request and show both answers.
//
// Invariant: status, headers and body are compared; normalise.go lists what is not.
package gateway
