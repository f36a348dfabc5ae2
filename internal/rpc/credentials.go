package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// ListenerCredentials returns credentials that accept connections whose TLS handshake was
// done by the listener, and connections without TLS. Calls see the client's certificates
// as with gRPC's own credentials: as credentials.TLSInfo in their peer.
func ListenerCredentials() credentials.TransportCredentials { return listenerCredentials{} }

type listenerCredentials struct{}

func (listenerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return conn, nil, nil
	}
	return conn, credentials.TLSInfo{
		State:          secure.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (listenerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: credentials of a listener cannot dial")
}

func (listenerCredentials) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{} }
func (c listenerCredentials) Clone() credentials.TransportCredentials { return c }
func (listenerCredentials) OverrideServerName(string) error           { return nil }
