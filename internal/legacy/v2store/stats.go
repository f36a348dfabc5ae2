package v2store

import "encoding/json"

// Stats are the counters of /v2/stats/store. The counters of writes are the same on all
// members and stored with the tree; those of reads and watchers are this member's own.
type Stats struct {
	GetsSuccess             uint64 `json:"getsSuccess"`
	GetsFail                uint64 `json:"getsFail"`
	SetsSuccess             uint64 `json:"setsSuccess"`
	SetsFail                uint64 `json:"setsFail"`
	DeleteSuccess           uint64 `json:"deleteSuccess"`
	DeleteFail              uint64 `json:"deleteFail"`
	UpdateSuccess           uint64 `json:"updateSuccess"`
	UpdateFail              uint64 `json:"updateFail"`
	CreateSuccess           uint64 `json:"createSuccess"`
	CreateFail              uint64 `json:"createFail"`
	CompareAndSwapSuccess   uint64 `json:"compareAndSwapSuccess"`
	CompareAndSwapFail      uint64 `json:"compareAndSwapFail"`
	CompareAndDeleteSuccess uint64 `json:"compareAndDeleteSuccess"`
	CompareAndDeleteFail    uint64 `json:"compareAndDeleteFail"`
	ExpireCount             uint64 `json:"expireCount"`
	Watchers                uint64 `json:"watchers"`
}

// writes returns the counters that are stored, in the order of their record.
func (s *Stats) writes() []*uint64 {
	return []*uint64{&s.SetsSuccess, &s.SetsFail, &s.DeleteSuccess, &s.DeleteFail, &s.UpdateSuccess, &s.UpdateFail,
		&s.CreateSuccess, &s.CreateFail, &s.CompareAndSwapSuccess, &s.CompareAndSwapFail,
		&s.CompareAndDeleteSuccess, &s.CompareAndDeleteFail, &s.ExpireCount}
}

// count counts an operation as etcd does: some failures count as successes there.
func (s *Stats) count(action string, err *Error) (failed bool) {
	failed = err != nil
	if failed {
		switch {
		case err.Code == CodeRootReadOnly && (action == Update || action == CompareAndSwap || action == Delete),
			err.Code == CodeNotFile && (action == Update || action == CompareAndDelete),
			err.Code == CodeCompareFailed && action == CompareAndDelete,
			err.Code == CodeRaftInternal && action == Update:
			failed = false
		}
	}
	var success, fail *uint64
	switch action {
	case Set:
		success, fail = &s.SetsSuccess, &s.SetsFail
	case Create:
		success, fail = &s.CreateSuccess, &s.CreateFail
	case Update:
		success, fail = &s.UpdateSuccess, &s.UpdateFail
	case CompareAndSwap:
		success, fail = &s.CompareAndSwapSuccess, &s.CompareAndSwapFail
	case Delete:
		success, fail = &s.DeleteSuccess, &s.DeleteFail
	case CompareAndDelete:
		success, fail = &s.CompareAndDeleteSuccess, &s.CompareAndDeleteFail
	}
	if failed {
		*fail++
	} else {
		*success++
	}
	return failed
}

// StatsJSON returns the body of /v2/stats/store.
func (s *Store) StatsJSON() []byte {
	b, err := json.Marshal(s.Stats())
	if err != nil {
		return []byte("{}") // numbers can always be encoded
	}
	return b
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	st := s.stats
	s.mu.RUnlock()
	st.GetsSuccess, st.GetsFail, st.Watchers = s.getsSuccess.Load(), s.getsFail.Load(), s.hub.number()
	return st
}
