package peerapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxAnswer bounds the responses of peers in bytes; those about leases may
// list many keys.
const maxAnswer = 100 << 20

// Client sends queries to the peer URLs of other members, before its own member
// has started as well as after. It is safe for concurrent use.
type Client struct{ http *http.Client }

// NewClient returns a Client that sends requests with h. The caller must
// close it.
func NewClient(h *http.Client) *Client { return &Client{http: h} }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// statusError is a response of a peer with a status other than 200.
type statusError struct {
	status int
	text   string // body, without a trailing newline
}

func (e *statusError) Error() string {
	return fmt.Sprintf("peer answered with status %d: %s", e.status, e.text)
}

// refused returns the statusError in err, nil if there is none.
func refused(err error) *statusError {
	var r *statusError
	errors.As(err, &r)
	return r
}

// ask sends a request and returns header and body of a successful response.
func (c *Client) ask(ctx context.Context, method, url string, header http.Header, body []byte) (http.Header, []byte, error) {
	return c.askFor(ctx, maxAnswer, method, url, header, body)
}

// askFor is ask for a response of at most limit bytes.
func (c *Client) askFor(ctx context.Context, limit int64, method, url string, header http.Header, body []byte) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s: %w", url, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read answer of %s: %w", url, err)
	}
	if int64(len(b)) > limit {
		return nil, nil, fmt.Errorf("answer of %s exceeds %d bytes", url, limit)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, &statusError{resp.StatusCode, strings.TrimSuffix(string(b), "\n")}
	}
	return resp.Header, b, nil
}

// askAny queries one URL after the other, each with the given timeout, until one
// returns a response that parse accepts. If none does, it returns the errors of
// all.
func (c *Client) askAny(ctx context.Context, urls []string, path string, timeout time.Duration, parse func(http.Header, []byte) error) error {
	var errs []error
	for _, u := range urls {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			h, b, err := c.ask(ctx, http.MethodGet, u+path, nil, nil)
			if err != nil {
				return err
			}
			return parse(h, b)
		}()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s%s: %w", u, path, err))
	}
	return errors.Join(append(errs, fmt.Errorf("no valid response to %[2]s from peer URLs %[1]v", urls, path))...)
}
