// Package differential runs one script of requests against two servers and compares the answers.
//
// Apart from the script, it generates random operations of all services from a seed (random.go): their answers
// are compared with those of etcd 3.7, and in clusters of Quorate with 3.7, 3.6 and 3.5 it compares what all
// members hold.
//
// In: the paths of two server binaries that take etcd's flags. Out: every operation whose answer differs, with
// the operation's number and the differing fields.
//
// The script is divided into sections. Each section starts both servers fresh, with equal advertised URLs and
// cluster token so that member and cluster ids are equal too, sends every operation to both, one after the
// other, and compares all fields of the answers, or the gRPC code and text of the errors. Nothing is ignored
// except what normalise.go lists.
package differential
