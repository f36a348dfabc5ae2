// Package h2 is an HTTP/2 server for gRPC and nothing else.
//
// In: connections whose peer speaks HTTP/2 (clear text with prior knowledge, or
// TLS after ALPN), and a table of methods. Out: calls of the handlers with
// encoded messages, and their answers on the wire. It knows neither protobuf nor
// the services.
//
// Always true: what a client can see of a call (status, texts, headers, trailers,
// resets) is what grpc-go's server would have sent. Nothing that a client sends
// makes it panic or lets its memory grow without bound: see the constants in
// limits.go. A handler that is slow, or a client that does not read, holds up
// its own connection at most.
//
// Each connection has one goroutine, which reads. Answers are appended to the
// connection's buffer by whoever has them; whoever finds the socket free writes
// all that has come together. That is where the speed comes from: there is no
// hand-off to a writer, and answers that are ready at the same time share a
// system call.
//
// From the socket inwards: reader.go cuts frames, conn.go acts on them,
// request.go judges the headers of a call, stream.go puts messages together and
// hands them to handlers, send.go answers within flow control, flush.go writes.
package h2
