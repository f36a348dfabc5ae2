package command

// Foreign is a request with an encoding of its own, which is no InternalRaftRequest: one of the v2 API. Only the packages
// below legacy know more of it.
type Foreign interface {
	// Marshal returns the encoded request.
	Marshal() []byte
	// CarriedBy reports whether an entry that another member encoded anew carries
	// proposed, the encoded request.
	CarriedBy(entry, proposed []byte) bool
	// MaxBytes is the upper bound of the encoded request.
	MaxBytes() int
	// Frees reports whether the request only removes data, so that it is admitted
	// when the disk is full.
	Frees() bool
}
