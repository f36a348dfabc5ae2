package transport

import (
	"bufio"
	"errors"
	"io"
	"net"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/transport/peerapi"
)

// streamBuffer is the read buffer of a stream, in bytes.
const streamBuffer = 64 << 10

// readStream keeps a stream from the peer open and processes its messages,
// until the peer is stopped.
func (p *peer) readStream(kind peerapi.Stream) {
	refused := "" // the last refusal that was logged
	for p.ctx.Err() == nil {
		start := clock.Now()
		body, err := p.dial(kind)
		if err == nil {
			refused = ""
			err = p.readFrom(kind, body)
		} else if p.ctx.Err() == nil {
			if what := refusal(err); what != "" && refused != err.Error() {
				refused = err.Error()
				p.lg.Warn(what, zap.Stringer("local-member-cluster-id", p.t.cfg.ClusterID), zap.String("stream-reader-type", streamLabel(kind)), p.called(), zap.Error(err))
			}
			if !errors.Is(err, peerapi.ErrUnsupportedStream) {
				p.status.deactivate("dial "+kind.String()+" stream", err)
			}
		}
		p.lg.Debug("no stream from the peer", zap.Stringer("stream", kind), zap.Error(err))
		select {
		case <-clock.After(dialRetry - clock.Since(start)):
		case <-p.ctx.Done():
		}
	}
}

// refusal is the log message for a refusal that is likely to persist; empty for
// other errors.
func refusal(err error) string {
	switch {
	case errors.Is(err, peerapi.ErrOtherCluster):
		return "request sent was ignored by remote peer due to cluster ID mismatch"
	case errors.Is(err, peerapi.ErrIncompatible), errors.Is(err, peerapi.ErrUnsupportedStream):
		return "request sent was ignored by remote peer due to server version incompatibility"
	}
	return ""
}

// readFrom processes the messages of a stream until it fails.
func (p *peer) readFrom(kind peerapi.Stream, body io.ReadCloser) error {
	defer body.Close()
	p.status.activate()
	p.lg.Info("established TCP streaming connection with remote peer", zap.String("stream-reader-type", streamLabel(kind)))
	in := &intake{p: p}
	defer in.step()
	r := bufio.NewReaderSize(&pausing{body, in.step}, streamBuffer)
	var dec decoder = plainDecoder{r}
	if kind == peerapi.StreamMsgApp {
		dec = &appDecoder{r: r, local: p.t.cfg.ID, remote: p.id}
	}
	for {
		m, n, err := dec.next()
		p.receivedBytes.Add(float64(n))
		if err != nil {
			// At EOF the peer has closed or replaced the stream; the next dial shows
			// whether the peer is down.
			if p.ctx.Err() == nil {
				p.lg.Warn("lost TCP streaming connection with remote peer", zap.String("stream-reader-type", streamLabel(kind)), p.called(), zap.Error(err))
				if err != io.EOF && !errors.Is(err, net.ErrClosed) {
					p.status.deactivate("read "+kind.String()+" stream", err)
				}
			}
			return err
		}
		if m != nil {
			in.add(m)
		}
	}
}

// pausing calls pause before each read, which may have to wait.
type pausing struct {
	r     io.Reader
	pause func()
}

func (p *pausing) Read(b []byte) (int, error) {
	p.pause()
	return p.r.Read(b)
}

// dial opens a stream from the peer.
func (p *peer) dial(kind peerapi.Stream) (io.ReadCloser, error) {
	u, err := p.urls.pick()
	if err != nil {
		return nil, err
	}
	body, err := p.dialURL(kind, u)
	if err != nil {
		p.urls.failed(u)
	}
	return body, err
}

func (p *peer) dialURL(kind peerapi.Stream, u string) (io.ReadCloser, error) {
	req, err := p.t.self.OpenStream(p.ctx, u, kind, p.id)
	if err != nil {
		return nil, err
	}
	resp, err := p.t.streams.Do(req)
	if err != nil {
		return nil, err
	}
	v, err := peerapi.StreamAnswer(resp)
	if v.Decided() {
		p.version.Store(&v)
	}
	if errors.Is(err, peerapi.ErrRemoved) {
		p.t.cfg.Host.SelfRemoved(err)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}
