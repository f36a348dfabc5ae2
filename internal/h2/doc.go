// Package h2 is an HTTP/2 server for gRPC and nothing else.
//
// In: connections whose peer speaks HTTP/2 (clear text with prior knowledge, or
// TLS after ALPN), and a table of methods. Out: calls of the handlers with encoded
// messages, and their replies on the wire. The package knows neither protobuf nor the
// services.
//
// Always true: what a client can observe of a call (status, texts, headers, trailers,
// resets) is what grpc-go's server would have sent. Nothing that a client sends makes
// the server panic or grow without bound; see the constants in limits.go. A slow
// handler, or a client that does not read, delays only its own connection.
//
// Each connection has one goroutine, which reads. Handlers append their replies to the
// connection's write buffer; the one that finds the socket idle writes everything that
// has accumulated. This is where the speed comes from: there is no hand-off to a writer
// goroutine, and replies that are ready at the same time share a system call.
//
// From the socket inwards: reader.go cuts the stream into frames, receive.go handles them,
// request.go validates the headers of a call, inbox.go assembles messages, stream.go
// hands them to handlers, send.go sends replies within the flow control of flow.go, and flush.go
// writes.
package h2
