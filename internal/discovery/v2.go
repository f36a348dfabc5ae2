package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/ids"
)

// Errors of the v2 register.
var (
	ErrDuplicateID   = errors.New("discovery: found duplicate id")
	ErrDuplicateName = errors.New("discovery: found duplicate name")
	ErrBadEndpoint   = errors.New("discovery: bad discovery endpoint")
	ErrInvalidURL    = errors.New("discovery: invalid URL")
)

const (
	v2CallTimeout = 5 * time.Second
	v2DialTimeout = 30 * time.Second
	// maxV2Answer bounds the bytes read from a response.
	maxV2Answer = 4 << 20
	// The pause after a failure doubles, from the first to the last of these.
	firstV2Pause = 2 * time.Second
	lastV2Pause  = 256 * time.Second
)

// V2 is a register under a URL: a directory of the v2 keys API, as served by the public
// discovery service and by clusters of etcd up to 3.5.
type V2 struct {
	URL    string // the URL is the token of the cluster
	Proxy  string // HTTP proxy in front of it; empty is none
	Logger *zap.Logger

	// Fallback is what a member does that finds the cluster full: FallbackExit or
	// FallbackProxy.
	Fallback string
}

// Values of V2.Fallback.
const (
	FallbackExit  = "exit"
	FallbackProxy = "proxy"
)

// Join registers member id with its part of the initial cluster (name=url,...), waits for
// the others, and returns the initial cluster. While the service cannot be reached it
// retries, until ctx ends.
func (v V2) Join(ctx context.Context, id ids.Member, self string) (string, error) {
	j, err := v.joining(id.String(), self)
	if err != nil {
		return "", err
	}
	defer j.client.CloseIdleConnections()
	return j.run(ctx)
}

// Observe waits until the register is full, without registering, and returns the initial
// cluster. It is for proxies, which are not members.
func (v V2) Observe(ctx context.Context) (string, error) {
	j, err := v.joining("", "")
	if err != nil {
		return "", err
	}
	defer j.client.CloseIdleConnections()
	return j.gather(ctx)
}

func (v V2) joining(id, self string) (*v2Joining, error) {
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: v2DialTimeout}).DialContext}
	if v.Proxy != "" {
		text := v.Proxy
		if !strings.Contains(text, "://") {
			text = "http://" + text
		}
		proxy, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("--discovery-proxy: %w", err)
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	return &v2Joining{V2: v, client: &http.Client{Transport: transport}, id: id, self: self, pause: pause, next: firstV2Pause}, nil
}

type v2Joining struct {
	V2
	client   *http.Client
	id, self string // empty if the caller only observes
	pause    func(context.Context, time.Duration) error
	next     time.Duration // pause after the next failure
}

// v2Node is a key of the v2 API with its child nodes.
type v2Node struct {
	Key           string   `json:"key"`
	Value         string   `json:"value"`
	Nodes         []v2Node `json:"nodes"`
	CreatedIndex  uint64   `json:"createdIndex"`
	ModifiedIndex uint64   `json:"modifiedIndex"`
}

// v2Error is an error response of the v2 API.
type v2Error struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	Cause   string `json:"cause"`
	Index   uint64 `json:"index"`
}

func (e *v2Error) Error() string {
	return fmt.Sprintf("%d: %s (%s) [%d]", e.Code, e.Message, e.Cause, e.Index)
}

const codeNodeExists = 105

// unreachable is a failure worth retrying.
type unreachable struct{ err error }

func (e *unreachable) Error() string { return e.err.Error() }
func (e *unreachable) Unwrap() error { return e.err }

func (j *v2Joining) run(ctx context.Context) (string, error) {
	if _, _, _, err := j.look(ctx); err != nil {
		return "", err
	}
	created, err := j.sign(ctx)
	if err != nil {
		return "", err
	}
	j.Logger.Info("registered in the discovery service", zap.String("discovery-url", j.URL), zap.String("member-id", j.id), zap.String("peers", j.self))
	// Until this server of the service has the entry.
	if _, _, err := j.retry(ctx, "waiting for other nodes", func() (*v2Node, uint64, error) {
		return j.call(ctx, http.MethodGet, "/"+j.id, url.Values{"recursive": {"false"}, "wait": {"true"}, "waitIndex": {strconv.FormatUint(created, 10)}}, nil, 0)
	}); err != nil {
		return "", err
	}
	return j.gather(ctx)
}

// gather waits until all members have registered.
func (j *v2Joining) gather(ctx context.Context) (string, error) {
	for {
		size, members, index, err := j.look(ctx)
		if err != nil {
			return "", err
		}
		for len(members) < size {
			j.Logger.Info("waiting for the other members in the discovery service", zap.Int("registered", len(members)), zap.Int("size", size))
			node, _, err := j.call(ctx, http.MethodGet, "", url.Values{"recursive": {"true"}, "wait": {"true"}, "waitIndex": {strconv.FormatUint(index+1, 10)}}, nil, 0)
			if err != nil {
				break
			}
			index = node.ModifiedIndex
			members = j.addNode(members, *node)
		}
		if len(members) < size {
			if err := j.wait(ctx, "waiting for other nodes", errors.New("the watch has ended")); err != nil {
				return "", err
			}
			continue
		}
		return j.cluster(members[:size])
	}
}

// cluster joins the values that the members have written.
func (j *v2Joining) cluster(members []signed) (string, error) {
	if j.id != "" && !has(members, j.id) {
		return "", ErrFull
	}
	names := map[string]bool{}
	peers := make([]string, len(members))
	for i, m := range members {
		peers[i] = m.peers
		name, u, ok := strings.Cut(m.peers, "=")
		if !ok || name == "" || u == "" {
			return "", fmt.Errorf("%w: %q", ErrInvalidURL, m.peers)
		}
		if names[name] {
			return "", ErrDuplicateName
		}
		names[name] = true
	}
	return strings.Join(peers, ","), nil
}

// look reads the size and the registered members. If the register is full without this
// member it returns an error.
func (j *v2Joining) look(ctx context.Context) (size int, members []signed, index uint64, err error) {
	plain := url.Values{"quorum": {"false"}, "recursive": {"false"}, "sorted": {"false"}}
	node, _, err := j.retry(ctx, "cluster status check", func() (*v2Node, uint64, error) {
		return j.call(ctx, http.MethodGet, "/"+sizeKey, plain, nil, v2CallTimeout)
	})
	if err != nil {
		return 0, nil, 0, err
	}
	if size, err = strconv.Atoi(node.Value); err != nil || size <= 0 || size > maxMembers {
		return 0, nil, 0, fmt.Errorf("%w: %q", ErrBadSize, node.Value)
	}
	dir, index, err := j.retry(ctx, "cluster status check", func() (*v2Node, uint64, error) {
		return j.call(ctx, http.MethodGet, "", plain, nil, v2CallTimeout)
	})
	if err != nil {
		return 0, nil, 0, err
	}
	for _, n := range dir.Nodes {
		members = j.addNode(members, n)
	}
	if len(members) >= size && j.id != "" && !has(members[:size], j.id) {
		return size, members, index, ErrFull
	}
	return size, members, index, nil
}

func (j *v2Joining) addNode(members []signed, n v2Node) []signed {
	id := n.Key[strings.LastIndexByte(n.Key, '/')+1:]
	if strings.HasPrefix(id, "_") || has(members, id) {
		return members
	}
	members = append(members, signed{id, n.Value, int64(n.CreatedIndex)})
	slices.SortStableFunc(members, byCreation)
	return members
}

// sign writes the entry of this member. It does not retry: a caller that cannot know
// whether the first attempt succeeded would find its own entry.
func (j *v2Joining) sign(ctx context.Context) (created uint64, err error) {
	node, _, err := j.call(ctx, http.MethodPut, "/"+j.id, url.Values{"prevExist": {"false"}}, url.Values{"value": {j.self}}, v2CallTimeout)
	if known := (*v2Error)(nil); errors.As(err, &known) && known.Code == codeNodeExists {
		return 0, ErrDuplicateID
	}
	if err != nil {
		return 0, err
	}
	return node.CreatedIndex, nil
}

// call makes one request. A limit of 0 is no limit, for waits.
func (j *v2Joining) call(ctx context.Context, method, key string, query, form url.Values, limit time.Duration) (*v2Node, uint64, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(j.URL, "/")+key+"?"+query.Encode(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, 0, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := j.client.Do(req)
	if err != nil {
		return nil, 0, &unreachable{err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxV2Answer))
	if err != nil {
		return nil, 0, &unreachable{err}
	}
	if resp.StatusCode >= 500 {
		return nil, 0, &unreachable{fmt.Errorf("the discovery service answers %s", resp.Status)}
	}
	return decodeV2(body, resp.Header.Get("X-Etcd-Index"))
}

// decodeV2 decodes a response of the v2 API.
func decodeV2(body []byte, index string) (*v2Node, uint64, error) {
	var answer struct {
		v2Error
		Node *v2Node `json:"node"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrBadEndpoint, err)
	}
	if answer.Code != 0 {
		return nil, 0, &answer.v2Error
	}
	if answer.Node == nil {
		return nil, 0, ErrBadEndpoint
	}
	n, _ := strconv.ParseUint(index, 10, 64) // absent in responses to a wait
	return answer.Node, n, nil
}

// retry repeats a request while the service cannot be reached.
func (j *v2Joining) retry(ctx context.Context, reason string, f func() (*v2Node, uint64, error)) (*v2Node, uint64, error) {
	for {
		node, index, err := f()
		if away := (*unreachable)(nil); err == nil || !errors.As(err, &away) {
			return node, index, err
		}
		if werr := j.wait(ctx, reason, err); werr != nil {
			return nil, 0, werr
		}
	}
}

func (j *v2Joining) wait(ctx context.Context, reason string, cause error) error {
	j.Logger.Warn("failed to reach the discovery service; trying again", zap.String("discovery-url", j.URL), zap.String("reason", reason),
		zap.Duration("pause", j.next), zap.Error(cause))
	d := j.next
	j.next = min(2*j.next, lastV2Pause)
	if err := j.pause(ctx, d); err != nil {
		return fmt.Errorf("discovery: %s: %w", reason, err)
	}
	return nil
}
