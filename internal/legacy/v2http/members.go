package v2http

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

var memberMethods = []string{"GET", "POST", "DELETE", "PUT"}

// member is a member in JSON. Unlike that of the peer port it has its id as text, and lists
// that are never null.
type member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

func memberOf(id ids.Member, name string, peerURLs, clientURLs []string) member {
	return member{id.String(), name, append([]string{}, peerURLs...), append([]string{}, clientURLs...)}
}

func (h *handler) members(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := h.timeout(r)
	defer cancel()
	if r.Method != http.MethodGet && !h.isRoot(ctx, w, r) {
		return
	}
	h.setCluster(w)
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, membersPath), "/")
	var id ids.Member
	switch r.Method {
	case http.MethodGet:
		h.listMembers(w, rest)
		return
	case http.MethodPut, http.MethodDelete:
		if rest == "" {
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		var err error
		if id, err = ids.ParseMember(rest); err != nil {
			h.writeMessage(w, http.StatusNotFound, "No such member: "+rest)
			return
		}
	}
	var urls []string
	if r.Method != http.MethodDelete {
		var ok bool
		if urls, ok = h.peerURLs(w, r); !ok {
			return
		}
	}
	var err error
	switch r.Method {
	case http.MethodPost:
		added, _, err := h.b.MemberAdd(ctx, urls, false)
		if err != nil {
			h.failMember(w, r, 0, err)
			return
		}
		h.writeJSON(w, http.StatusCreated, memberOf(ids.Member(added.ID), added.Name, added.PeerURLs, added.ClientURLs))
		return
	case http.MethodPut:
		_, err = h.b.MemberUpdate(ctx, id, urls)
	case http.MethodDelete:
		_, err = h.b.MemberRemove(ctx, id)
	}
	if err != nil {
		h.failMember(w, r, id, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) listMembers(w http.ResponseWriter, which string) {
	all := h.b.Members()
	switch which {
	case "":
		list := make([]member, len(all))
		for i, m := range all {
			list[i] = memberOf(m.ID, m.Name, m.PeerURLs, m.ClientURLs)
		}
		h.writeJSON(w, http.StatusOK, struct {
			Members []member `json:"members"`
		}{list})
	case "leader":
		lead := h.b.Leader()
		i := slices.IndexFunc(all, func(m membership.Member) bool { return m.ID == lead })
		if lead == 0 || i < 0 {
			h.writeMessage(w, http.StatusServiceUnavailable, "During election")
			return
		}
		h.writeJSON(w, http.StatusOK, memberOf(all[i].ID, all[i].Name, all[i].PeerURLs, all[i].ClientURLs))
	default:
		h.writeMessage(w, http.StatusNotFound, "Not found")
	}
}

// failMember sends the reason why a change of a member failed. id is 0 for an addition.
func (h *handler) failMember(w http.ResponseWriter, r *http.Request, id ids.Member, err error) {
	removed := id != 0 && h.b.IsRemoved(id)
	switch {
	case errors.Is(err, rpctypes.ErrGRPCPeerURLExist):
		h.writeMessage(w, http.StatusConflict, membership.ErrPeerURLExists.Error())
	case errors.Is(err, rpctypes.ErrGRPCMemberExist):
		h.writeMessage(w, http.StatusConflict, membership.ErrIDExists.Error())
	case errors.Is(err, rpctypes.ErrGRPCMemberNotFound) && removed && r.Method == http.MethodDelete:
		h.writeMessage(w, http.StatusGone, "Member permanently removed: "+id.String())
	case errors.Is(err, rpctypes.ErrGRPCMemberNotFound) && !removed:
		h.writeMessage(w, http.StatusNotFound, "No such member: "+id.String())
	default:
		h.writeError(w, r, fmt.Errorf("change a member: %w", err))
	}
}

// peerURLs decodes the body of an addition or an update, or answers why it is invalid.
func (h *handler) peerURLs(w http.ResponseWriter, r *http.Request) ([]string, bool) {
	kind := r.Header.Get("Content-Type")
	if i := strings.IndexByte(kind, ';'); i >= 0 {
		kind = strings.ToLower(strings.TrimSpace(kind[:i]))
	}
	if kind != "application/json" {
		h.writeMessage(w, http.StatusUnsupportedMediaType, fmt.Sprintf("Bad Content-Type %s, accept application/json", kind))
		return nil, false
	}
	var body struct {
		PeerURLs []string `json:"peerURLs"`
	}
	var urls types.URLs
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(data, &body)
	}
	if err == nil {
		urls, err = types.NewURLs(body.PeerURLs)
	}
	if err != nil {
		h.writeMessage(w, http.StatusBadRequest, err.Error())
		return nil, false
	}
	return urls.StringSlice(), true
}

// machines lists the client URLs of all members, sorted.
func (h *handler) machines(w http.ResponseWriter, _ *http.Request) {
	var urls []string
	for _, m := range h.b.Members() {
		urls = append(urls, m.ClientURLs...)
	}
	slices.Sort(urls)
	io.WriteString(w, strings.Join(urls, ", "))
}

// stats sends the result of get; a nil result is that of a member that does not lead.
func (h *handler) stats(get func() []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		data := get()
		if data == nil {
			h.writeMessage(w, http.StatusForbidden, "not current leader")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(data)
	}
}
