// Package differential runs one script of requests against two servers and compares the answers.
//
// Beside the script, random operations of all services (random.go) are made from a seed: their
// answers are compared with those of etcd 3.7, and in clusters of ours and 3.7, 3.6 and 3.5
// what all members hold is.
//
// In: the paths of two server binaries that take etcd's flags. Out: every operation whose answer
// differs, with the operation's number and the differing fields.
//
// The script is cut into sections. Each section starts both servers fresh, with equal advertised
// URLs and cluster token so that member and cluster ids are equal too, sends every operation to
// both, one after the other, and compares all fields of the answers, or the gRPC code and
// text of the errors. Nothing is ignored except what normalise.go lists.
package differential
