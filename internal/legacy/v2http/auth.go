package v2http

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"strings"

	"quorate/internal/legacy/v2auth"
)

var errNoJSON = &v2auth.Error{Status: http.StatusBadRequest, Text: "Invalid JSON in request body."}

// named serves the list of a kind of object, or a single object.
func (h *handler) named(kind string, list http.HandlerFunc, one func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(path.Clean(r.URL.Path[len(authPath):]), "/") // "", kind, name
		switch len(parts) {
		case 2:
			only([]string{"GET"}, h.asRoot(list))(w, r)
		case 3:
			only([]string{"GET", "PUT", "DELETE"}, h.asRoot(func(w http.ResponseWriter, r *http.Request) { one(w, r, parts[2]) }))(w, r)
		default:
			h.writeMessage(w, http.StatusBadRequest, "Invalid path")
		}
	}
}

// asRoot admits administrators, and sets the usual headers.
func (h *handler) asRoot(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := h.timeout(r)
		defer cancel()
		if !h.isRoot(ctx, w, r) {
			return
		}
		h.setCluster(w)
		w.Header().Set("Content-Type", "application/json")
		next(w, r.WithContext(ctx))
	}
}

func (h *handler) enable(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		h.asRoot(h.turn)(w, r)
		return
	}
	h.setCluster(w)
	on, err := h.auth.Enabled(r.Context())
	h.answer(w, r, http.StatusOK, struct {
		Enabled bool `json:"enabled"`
	}{on}, err)
}

func (h *handler) turn(w http.ResponseWriter, r *http.Request) {
	turn := h.auth.Enable
	if r.Method == http.MethodDelete {
		turn = h.auth.Disable
	}
	if err := turn(r.Context()); err != nil {
		h.writeError(w, r, err)
	}
}

// answer sends v, or err if it is not nil.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, status int, v any, err error) {
	if err != nil {
		h.writeError(w, r, err)
		return
	}
	h.writeJSON(w, status, v)
}

// userWithRoles is a user with the permissions of its roles.
type userWithRoles struct {
	User  string        `json:"user"`
	Roles []v2auth.Role `json:"roles,omitempty"`
}

// withRoles looks up the roles of a user. A role that does not exist is left out or, with
// all, an error.
func (h *handler) withRoles(ctx context.Context, u v2auth.User, all bool) (userWithRoles, error) {
	out := userWithRoles{User: u.User}
	for _, name := range u.Roles {
		role, err := h.auth.Role(ctx, name)
		var missing *v2auth.Error
		if errors.As(err, &missing) && !all {
			continue
		}
		if err != nil {
			return out, err
		}
		out.Roles = append(out.Roles, role)
	}
	return out, nil
}

func (h *handler) users(w http.ResponseWriter, r *http.Request) {
	var out struct {
		Users []userWithRoles `json:"users"`
	}
	names, err := h.auth.Users(r.Context())
	for _, name := range names {
		var u v2auth.User
		var shown userWithRoles
		if u, err = h.auth.User(r.Context(), name); err == nil {
			shown, err = h.withRoles(r.Context(), u, false)
		}
		if err != nil {
			break
		}
		out.Users = append(out.Users, shown)
	}
	h.answer(w, r, http.StatusOK, out, err)
}

func (h *handler) roles(w http.ResponseWriter, r *http.Request) {
	var out struct {
		Roles []v2auth.Role `json:"roles"`
	}
	names, err := h.auth.Roles(r.Context())
	for _, name := range names {
		var role v2auth.Role
		if role, err = h.auth.Role(r.Context(), name); err != nil {
			break
		}
		out.Roles = append(out.Roles, role)
	}
	h.answer(w, r, http.StatusOK, out, err)
}

func (h *handler) user(w http.ResponseWriter, r *http.Request, name string) {
	ctx := r.Context()
	switch r.Method {
	case http.MethodGet:
		var shown userWithRoles
		u, err := h.auth.User(ctx, name)
		if err == nil {
			shown, err = h.withRoles(ctx, u, true)
		}
		h.answer(w, r, http.StatusOK, shown, err)
	case http.MethodPut:
		out, status, err := h.putUser(w, r, name)
		out.Password = ""
		h.answer(w, r, status, out, err)
	case http.MethodDelete:
		if err := h.auth.DeleteUser(ctx, name); err != nil {
			h.writeError(w, r, err)
		}
	}
}

func (h *handler) putUser(w http.ResponseWriter, r *http.Request, name string) (out v2auth.User, status int, err error) {
	var u v2auth.User
	if decode(w, r, &u) != nil {
		return out, 0, errNoJSON
	}
	if u.User != name {
		return out, 0, &v2auth.Error{Status: http.StatusBadRequest, Text: "User JSON name does not match the name in the URL"}
	}
	status = http.StatusOK
	switch {
	case len(u.Grant) > 0 || len(u.Revoke) > 0:
		if len(u.Roles) > 0 {
			return out, 0, &v2auth.Error{Status: http.StatusBadRequest, Text: "User JSON contains both roles and grant/revoke"}
		}
		out, err = h.auth.UpdateUser(r.Context(), u)
	case len(u.Roles) > 0:
		out, err = h.auth.CreateUser(r.Context(), u)
	default:
		var created bool
		if out, created, err = h.auth.PutUser(r.Context(), u); created {
			status = http.StatusCreated
		}
	}
	return out, status, err
}

func (h *handler) role(w http.ResponseWriter, r *http.Request, name string) {
	switch r.Method {
	case http.MethodGet:
		role, err := h.auth.Role(r.Context(), name)
		h.answer(w, r, http.StatusOK, role, err)
	case http.MethodPut:
		out, status, err := h.putRole(w, r, name)
		h.answer(w, r, status, out, err)
	case http.MethodDelete:
		if err := h.auth.DeleteRole(r.Context(), name); err != nil {
			h.writeError(w, r, err)
		}
	}
}

func (h *handler) putRole(w http.ResponseWriter, r *http.Request, name string) (out v2auth.Role, status int, err error) {
	var role v2auth.Role
	if decode(w, r, &role) != nil {
		return out, 0, errNoJSON
	}
	if role.Role != name {
		return out, 0, &v2auth.Error{Status: http.StatusBadRequest, Text: "Role JSON name does not match the name in the URL"}
	}
	if role.Grant.Empty() && role.Revoke.Empty() {
		return role, http.StatusCreated, h.auth.CreateRole(r.Context(), role)
	}
	if !role.Permissions.Empty() {
		return out, 0, &v2auth.Error{Status: http.StatusBadRequest, Text: "Role JSON contains both permissions and grant/revoke"}
	}
	out, err = h.auth.UpdateRole(r.Context(), role)
	return out, http.StatusOK, err
}

// decode reads the first JSON value of a body, whatever its content type.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	return json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v)
}
