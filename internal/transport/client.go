package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"quorate/internal/membership"
)

// maxAnswer bounds the answers of peers to questions; those on leases may list
// many keys.
const maxAnswer = 100 << 20

// Errors of questions that callers tell apart.
var (
	// ErrLearnerNotReady is returned by Promote: the learner's log is too far behind. By
	// its text a caller knows the 412.
	ErrLearnerNotReady = membership.ErrLearnerNotReady
	// ErrPeerTimeout is returned when a peer answered that it ran out of time.
	ErrPeerTimeout = errors.New("transport: peer ran out of time")
)

// Client asks the peer ports of other members questions. It needs no Transport,
// so that a member can ask before it has started. Its methods may be called
// from any goroutine.
type Client struct{ http *http.Client }

// NewClient returns a Client; source may be nil. Close it when done.
func NewClient(source TLSSource, dialTimeout time.Duration) *Client {
	return &Client{http: newRequestClient(source, dialer(dialTimeout, nil))}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// StatusError is an answer of a peer that is not a success.
type StatusError struct {
	Code int    // HTTP status
	Text string // body, without a trailing newline
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("peer answered with status %d: %s", e.Code, e.Text)
}

// ask sends a request and returns header and body of a successful answer.
func (c *Client) ask(ctx context.Context, method, url string, header http.Header, body []byte) (http.Header, []byte, error) {
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read answer of %s: %w", url, err)
	}
	if len(b) > maxAnswer {
		return nil, nil, fmt.Errorf("answer of %s exceeds %d bytes", url, maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, &StatusError{resp.StatusCode, strings.TrimSuffix(string(b), "\n")}
	}
	return resp.Header, b, nil
}

// askAny asks one URL after the other, each for at most timeout, until one
// gives an answer that parse accepts. It returns the errors of all if none does.
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
	return errors.Join(append(errs, fmt.Errorf("none of the peer URLs %v gave an answer to %s", urls, path))...)
}

// Members asks for the members of the cluster, sorted by id, and its id. The
// first URL with a valid answer counts.
func (c *Client) Members(ctx context.Context, urls []string, timeout time.Duration) (ms []membership.Member, clusterID uint64, err error) {
	err = c.askAny(ctx, urls, "/members", timeout, func(h http.Header, b []byte) (err error) {
		if ms, err = membership.DecodeMembers(b); err != nil {
			return err
		}
		if clusterID, err = membership.ParseID(h.Get(headerCluster)); err != nil {
			return fmt.Errorf("cluster id: %w", err)
		}
		if len(ms) == 0 {
			return errors.New("no members in the answer")
		}
		for _, m := range ms {
			if m.ID == 0 || len(m.PeerURLs) == 0 {
				return fmt.Errorf("member %s without id or peer URLs in the answer", membership.FormatID(m.ID))
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return ms, clusterID, nil
}

// Versions is the answer of a member to /version.
type Versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"` // "not_decided" before the first decision
	Storage string `json:"storage"`     // empty before 3.6
	Quorate string `json:"quorate"`     // empty for members of another program
}

// Version asks one member, under any of its peer URLs, for its versions.
func (c *Client) Version(ctx context.Context, urls []string, timeout time.Duration) (v Versions, err error) {
	err = c.askAny(ctx, urls, "/version", timeout, func(_ http.Header, b []byte) error {
		return json.Unmarshal(b, &v)
	})
	return v, err
}

// DowngradeEnabled asks whether a cluster downgrade is in progress.
func (c *Client) DowngradeEnabled(ctx context.Context, urls []string, timeout time.Duration) (on bool, err error) {
	err = c.askAny(ctx, urls, "/downgrade/enabled", timeout, func(_ http.Header, b []byte) (err error) {
		on, err = strconv.ParseBool(string(b))
		return err
	})
	return on, err
}

// Promote asks the leader at url to promote a learner, with the client's auth
// token if there is one, and returns the members after it. Refusals are
// membership.ErrIDNotFound, membership.ErrMemberNotLearner, ErrLearnerNotReady
// and ErrPeerTimeout.
func (c *Client) Promote(ctx context.Context, url string, id uint64, token string) ([]membership.Member, error) {
	h := http.Header{}
	if token != "" {
		h.Set("Authorization", token)
	}
	_, b, err := c.ask(ctx, http.MethodPost, url+"/members/promote/"+strconv.FormatUint(id, 10), h, nil)
	var status *StatusError
	if errors.As(err, &status) {
		switch {
		case status.Code == http.StatusRequestTimeout:
			return nil, ErrPeerTimeout
		case status.Code == http.StatusNotFound:
			return nil, membership.ErrIDNotFound
		case status.Code == http.StatusPreconditionFailed && strings.Contains(status.Text, ErrLearnerNotReady.Error()):
			return nil, ErrLearnerNotReady
		case status.Code == http.StatusPreconditionFailed && strings.Contains(status.Text, membership.ErrMemberNotLearner.Error()):
			return nil, membership.ErrMemberNotLearner
		}
	}
	if err != nil {
		return nil, fmt.Errorf("member promote: %w", err)
	}
	return membership.DecodeMembers(b)
}

// PeerHash is a member's hash of its key space.
type PeerHash struct {
	Header struct {
		Revision int64 `json:"revision"`
	} `json:"header"`
	Hash            uint32 `json:"hash"`
	CompactRevision int64  `json:"compact_revision"`
	HashRevision    int64  `json:"hash_revision"` // 0 before 3.6
}

// HashKV asks the member at url for its hash at a revision, 0 for the current.
// A refusal is a *StatusError whose text is that of the mvcc error.
func (c *Client) HashKV(ctx context.Context, url string, clusterID uint64, rev int64) (PeerHash, error) {
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	h.Set(headerCluster, membership.FormatID(clusterID))
	body := []byte(`{"revision":` + strconv.FormatInt(rev, 10) + `}`)
	var answer PeerHash
	_, b, err := c.ask(ctx, http.MethodGet, url+"/members/hashkv", h, body)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return answer, fmt.Errorf("decode hash of %s: %w", url, err)
	}
	return answer, nil
}
