// Command bench measures a server against real etcd, row by row, and writes the table of docs/performance.md.
//
// In: two server binaries that take etcd's flags. Out: one table, between markers in the document, with both
// measurements, their ratio, the budget of the design and a verdict.
//
// Invariant: both sides get the same flags, the same requests in the same order and the same disk; a measurement
// of one side is always followed by the same one of the other; a value in the table is the median of its
// repetitions. Server cost is read from /proc, so it excludes the generator's own cost, which shares the
// machine; that cost is small (package lean), and what the generator receives is compared with what grpc-go's
// client receives. A row that fails is reported as failed and the rest goes on.
package main
