package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/membership"
)

// streamBuffer is how much of a stream is read at once.
const streamBuffer = 64 << 10

// readStream keeps a stream from the peer open and hands on what comes, until
// the peer is stopped.
func (p *peer) readStream(kind streamKind) {
	refused := "" // what the log has been told already
	for p.ctx.Err() == nil {
		start := clock.Now()
		body, err := p.dial(kind)
		if err == nil {
			refused = ""
			err = p.readFrom(kind, body)
		} else if p.ctx.Err() == nil {
			if what := refusal(err); what != "" && refused != err.Error() {
				refused = err.Error()
				p.lg.Warn(what, zap.String("local-member-cluster-id", membership.FormatID(p.t.cfg.ClusterID)), zap.String("stream-reader-type", kind.label()), p.called(), zap.Error(err))
			}
			if !errors.Is(err, errUnsupportedStream) {
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

// refusal is what the log says about a peer that will not change its mind soon;
// empty for other errors.
func refusal(err error) string {
	switch {
	case errors.Is(err, errClusterMismatch):
		return "request sent was ignored by remote peer due to cluster ID mismatch"
	case errors.Is(err, errIncompatible), errors.Is(err, errUnsupportedStream):
		return "request sent was ignored by remote peer due to server version incompatibility"
	}
	return ""
}

// readFrom hands on the messages of a stream until it fails.
func (p *peer) readFrom(kind streamKind, body io.ReadCloser) error {
	defer body.Close()
	p.status.activate()
	p.lg.Info("established TCP streaming connection with remote peer", zap.String("stream-reader-type", kind.label()))
	r := bufio.NewReaderSize(body, streamBuffer)
	var dec decoder = plainDecoder{r}
	if kind == kindMsgApp {
		dec = &appDecoder{r: r, local: p.t.cfg.ID, remote: p.id}
	}
	for {
		m, n, err := dec.next()
		p.receivedBytes.Add(float64(n))
		if err != nil {
			// An end is the peer closing or replacing the stream; whether it is
			// gone shows the next dial.
			if p.ctx.Err() == nil {
				p.lg.Warn("lost TCP streaming connection with remote peer", zap.String("stream-reader-type", kind.label()), p.called(), zap.Error(err))
				if err != io.EOF && !errors.Is(err, net.ErrClosed) {
					p.status.deactivate("read "+kind.String()+" stream", err)
				}
			}
			return err
		}
		if m != nil {
			p.receive(m)
		}
	}
}

// dial opens a stream from the peer.
func (p *peer) dial(kind streamKind) (io.ReadCloser, error) {
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

func (p *peer) dialURL(kind streamKind, u string) (io.ReadCloser, error) {
	url := u + pathStream + "/" + kind.String() + "/" + membership.FormatID(p.t.cfg.ID)
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", url, err)
	}
	p.t.setHeaders(req.Header)
	req.Header.Set(headerTo, p.name)
	resp, err := p.t.streams.Do(req)
	if err != nil {
		return nil, err
	}
	if err := p.checkStreamAnswer(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

func (p *peer) checkStreamAnswer(resp *http.Response) error {
	// Before the status: who does not even tell its version is not a member, and
	// must not be able to end this one with a 410.
	v, err := headerVersionOf(resp.Header, headerVersion)
	if err != nil || v.MajorMinor().Less(firstStreamVersion) {
		return errUnsupportedStream
	}
	p.version.Store(&v)
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusGone:
		p.t.cfg.Host.SelfRemoved(ErrRemoved)
		return ErrRemoved
	case http.StatusNotFound:
		return fmt.Errorf("peer %s does not know member %s yet", p.name, membership.FormatID(p.t.cfg.ID))
	}
	return statusError(resp)
}
