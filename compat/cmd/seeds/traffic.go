package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peerTraffic cuts a connection between members: requests of HTTP/1.1, of which some are answered by a stream.
func (c *corpus) peerTraffic(x *recording) {
	requests, answers := bufio.NewReader(bytes.NewReader(x.up)), bufio.NewReader(bytes.NewReader(x.down))
	for {
		req, err := http.ReadRequest(requests)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body) // an end in the middle is that of the recording
		h := req.Header
		kind := strings.Trim(strings.TrimRight(req.URL.Path, "0123456789abcdef"), "/")
		if strings.HasPrefix(req.URL.Path, "/raft") {
			c.add("transport/peerapi", "FuzzRaftHeaders", kind, req.Method, req.URL.Path, h.Get("X-Server-From"), h.Get("X-Server-Version"),
				h.Get("X-Min-Cluster-Version"), h.Get("X-Etcd-Cluster-ID"), h.Get("X-Raft-To"), h.Get("X-PeerURLs"))
		}
		var stream []byte
		resp, err := http.ReadResponse(answers, req)
		if err == nil {
			stream, _ = io.ReadAll(resp.Body)
		}
		switch {
		case err == nil && (!strings.HasPrefix(req.URL.Path, "/raft") || req.URL.Path == "/raft/probing") && !strings.HasPrefix(req.URL.Path, "/leases"):
			c.add("transport/peerapi", "FuzzAnswers", fmt.Sprintf("%s-%d", kind, resp.StatusCode), resp.StatusCode, resp.Header.Get("X-Etcd-Cluster-ID"), first(stream))
		case req.URL.Path == "/raft":
			c.message(body)
		case req.URL.Path == "/raft/snapshot":
			c.add("transport", "FuzzSnapshotEnvelope", "snapshot", first(body))
		case req.URL.Path == "/leases/internal":
			c.add("transport/peerapi", "FuzzLeaseInternal", "request", body)
			c.add("transport/peerapi", "FuzzLeaseInternal", "answer", stream)
		case strings.HasPrefix(req.URL.Path, "/raft/stream/message/"):
			c.add("transport", "FuzzMessageStream", "stream", first(stream))
			c.messages(stream)
		case strings.HasPrefix(req.URL.Path, "/raft/stream/msgapp/"):
			if len(bytes.Trim(stream, "\x00")) == 0 {
				break // heartbeats alone: that member does not lead
			}
			c.add("transport", "FuzzMsgAppStream", "stream", first(stream))
			if len(stream) > 9 && stream[0] == 2 {
				c.messages(stream[1:])
			}
		}
	}
}

// messages cuts a stream of messages with their lengths, up to what is none.
func (c *corpus) messages(b []byte) {
	for len(b) > 8 {
		n := binary.BigEndian.Uint64(b)
		if n > uint64(len(b)-8) {
			return
		}
		c.message(b[8 : 8+n])
		b = b[8+n:]
	}
}

// message keeps a message of raft by its type, the first field.
func (c *corpus) message(b []byte) {
	if len(b) > 2 && b[0] == 8 {
		c.add("transport", "FuzzDecodeMessage", fmt.Sprintf("type-%d", b[1]), first(b))
	}
}

// hot are the methods whose messages package wire decodes.
var hot = map[string]bool{"Put": true, "Range": true, "DeleteRange": true, "Txn": true, "Watch": true, "LeaseKeepAlive": true}

// client cuts a connection of etcdctl: HTTP/2 with gRPC inside.
func (c *corpus) client(x *recording) {
	up, ok := bytes.CutPrefix(x.up, []byte(http2.ClientPreface))
	if !ok {
		return
	}
	paths := map[uint32]string{}
	bodies := map[uint32][]byte{}
	fr := http2.NewFramer(io.Discard, bytes.NewReader(up))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			break
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			paths[f.StreamID] = f.PseudoValue("path")
			c.requestHeaders(f)
		case *http2.DataFrame:
			bodies[f.StreamID] = append(bodies[f.StreamID], f.Data()...)
		}
	}
	for id, b := range bodies {
		kind := paths[id][strings.LastIndexByte(paths[id], '/')+1:]
		c.add("h2", "FuzzFrames", kind, first(up))
		for len(b) > 5 {
			n := int(binary.BigEndian.Uint32(b[1:]))
			if n > len(b)-5 {
				break
			}
			if hot[kind] {
				c.add("wire", "FuzzDecode", kind, first(b[5:5+n]))
				c.add("wire", "FuzzEncode", kind, first(b[5:5+n]))
			}
			c.add("rpc", "FuzzCodec", kind, first(b[5:5+n]))
			b = b[5+n:]
		}
	}
	fr = http2.NewFramer(io.Discard, bytes.NewReader(x.down))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if f, ok := f.(*http2.MetaHeadersFrame); ok {
			for _, h := range f.RegularFields() {
				if h.Name == "grpc-message" && h.Value != "" {
					c.add("h2", "FuzzMessage", "grpc-message", h.Value)
				}
			}
		}
	}
}

// requestHeaders keeps the headers of a request, three at a time, as the target takes them, and its token.
func (c *corpus) requestHeaders(f *http2.MetaHeadersFrame) {
	fields := []string{":path", f.PseudoValue("path")}
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "token":
			c.add("auth", "FuzzResolve", fmt.Sprintf("token-%d", strings.Count(h.Value, ".")), h.Value)
			c.add("h2", "FuzzRequest", "token", fields[0], fields[1], h.Name, h.Value, "te", "trailers")
		case "grpc-timeout", "hasleader", "client-api-version":
			c.add("h2", "FuzzRequest", h.Name, fields[0], fields[1], h.Name, h.Value, "te", "trailers")
			c.add("h2", "FuzzMessage", h.Name, h.Value)
		}
	}
}

// v2 cuts a connection of etcdctl with the v2 API.
func (c *corpus) v2(x *recording) {
	requests, answers := bufio.NewReader(bytes.NewReader(x.up)), bufio.NewReader(bytes.NewReader(x.down))
	for {
		req, err := http.ReadRequest(requests)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		resp, err := http.ReadResponse(answers, req)
		if err != nil {
			return
		}
		answer, _ := io.ReadAll(resp.Body)
		if a := req.Header.Get("Authorization"); a != "" {
			c.add("legacy/v2http", "FuzzAuthorization", "basic", a)
		}
		if key, ok := strings.CutPrefix(req.URL.Path, "/v2/keys"); ok {
			c.add("legacy/v2http", "FuzzParse", req.Method, req.Method, key, req.URL.RawQuery, req.Header.Get("Content-Type"), string(body))
			c.add("discovery", "FuzzDecodeV2", fmt.Sprintf("%s-%d", req.Method, resp.StatusCode), first(answer), resp.Header.Get("X-Etcd-Index"))
		}
	}
}
