package v2store

// Error is an error of the v2 API as clients get it.
type Error struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	// Cause is a path of the store, or a text.
	Cause string `json:"cause,omitempty"`
	// Index is the store's index at the time of the error, 0 where etcd sends none.
	Index uint64 `json:"index"`
}

// The codes of the v2 API that etcd uses.
const (
	CodeKeyNotFound        = 100
	CodeCompareFailed      = 101
	CodeNotFile            = 102
	CodeNotDir             = 104
	CodeNodeExists         = 105
	CodeRootReadOnly       = 107
	CodeDirNotEmpty        = 108
	CodeUnauthorized       = 110
	CodePrevValueRequired  = 201
	CodeTTLNotANumber      = 202
	CodeIndexNotANumber    = 203
	CodeInvalidField       = 209
	CodeInvalidForm        = 210
	CodeRefreshValue       = 211
	CodeRefreshTTLRequired = 212
	CodeRaftInternal       = 300
	CodeLeaderElection     = 301
	CodeWatcherCleared     = 400
	CodeIndexCleared       = 401
)

var messages = map[int]string{
	CodeKeyNotFound:        "Key not found",
	CodeCompareFailed:      "Compare failed",
	CodeNotFile:            "Not a file",
	CodeNotDir:             "Not a directory",
	CodeNodeExists:         "Key already exists",
	CodeRootReadOnly:       "Root is read only",
	CodeDirNotEmpty:        "Directory not empty",
	CodeUnauthorized:       "The request requires user authentication",
	CodePrevValueRequired:  "PrevValue is Required in POST form",
	CodeTTLNotANumber:      "The given TTL in POST form is not a number",
	CodeIndexNotANumber:    "The given index in POST form is not a number",
	CodeInvalidField:       "Invalid field",
	CodeInvalidForm:        "Invalid POST form",
	CodeRefreshValue:       "Value provided on refresh",
	CodeRefreshTTLRequired: "A TTL must be provided on refresh",
	CodeRaftInternal:       "Raft Internal Error",
	CodeLeaderElection:     "During Leader Election",
	CodeWatcherCleared:     "watcher is cleared due to etcd recovery",
	CodeIndexCleared:       "The event in requested index is outdated and cleared",
}

// NewError returns the error of a code with its message.
func NewError(code int, cause string, index uint64) *Error {
	return &Error{Code: code, Message: messages[code], Cause: cause, Index: index}
}

// Error returns the text that etcd logs.
func (e Error) Error() string { return e.Message + " (" + e.Cause + ")" }

// Status returns the HTTP status of the code.
func (e Error) Status() int {
	switch e.Code {
	case CodeKeyNotFound:
		return 404
	case CodeCompareFailed, CodeNodeExists:
		return 412
	case CodeNotFile, CodeDirNotEmpty:
		return 403
	case CodeUnauthorized:
		return 401
	case CodeRaftInternal, CodeLeaderElection:
		return 500
	}
	return 400
}
