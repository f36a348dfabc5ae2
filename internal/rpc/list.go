package rpc

import (
	"time"

	"google.golang.org/grpc/mem"

	"quorate/internal/crash"
	"quorate/internal/h2"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/wire"
)

// listOf returns the list that a reply is still to be read from, or nil.
func listOf(resp any) mvcc.Reading {
	if r, ok := resp.(*rangeReply); ok && r != nil {
		return r.list
	}
	return nil
}

// replyList returns the reply to a range request that is read from l. done is called once
// the list has been read or abandoned, with the time spent reading.
func (e *edge) replyList(l mvcc.Reading, done func(reading time.Duration)) (h2.Reply, error) {
	about := l.About()
	h := e.header(about.Revision)
	src := &listSource{list: l, done: done,
		head: h.Append(make([]byte, 0, h.Size())), tail: wire.AppendRangeTail(nil, about.More, about.Count)}
	size := len(src.head) + int(about.Bytes) + len(src.tail)
	metrics.NetworkClientGRPCSentBytesTotal.Add(float64(size))
	if size > smallResponse {
		return h2.Reply{Source: src, Size: size}, nil
	}
	defer src.Close()
	b := make(finished, 0, size)
	for len(b) < size {
		piece, _, err := src.Next()
		if err != nil {
			return h2.Reply{}, toStatus(err)
		}
		b = append(b, piece...)
	}
	return h2.Reply{Small: b, Size: size}, nil
}

// finished is an encoded message.
type finished []byte

func (m finished) AppendTo(b []byte) []byte { return append(b, m...) }

// listSource produces a range reply piece by piece: header, records, more and count.
type listSource struct {
	head, tail []byte
	list       mvcc.Reading
	done       func(reading time.Duration)
	state      int
}

const (
	sendsHead = iota
	sendsList
	sendsTail
)

func (s *listSource) Next() (piece []byte, soon bool, err error) {
	defer crash.Guard()
	if s.state == sendsHead {
		if s.state = sendsList; s.list.About().Bytes == 0 {
			s.state = sendsTail
		}
		return s.head, true, nil // the first records have already been read
	}
	if s.state == sendsTail {
		return s.tail, true, nil
	}
	piece, last, err := s.list.Next()
	if last {
		s.state = sendsTail
	}
	return piece, last, err
}

func (s *listSource) Close() {
	s.list.Close()
	s.done(s.list.Took())
}

// rangeStream sends a list in several messages; the last one carries more and count.
func (k *kvServer) rangeStream(s *stream) error {
	c := new(rangeCall)
	if err := s.RecvMsg(c); err != nil {
		return err
	}
	if err := checkRangeStream(&c.req); err != nil {
		return err
	}
	l, err := k.kv.RangeStream(s.Context(), &c.req)
	if err != nil {
		return err
	}
	defer l.Close()
	about := l.About()
	for last := false; !last; {
		m := &rangeChunk{}
		if m.elems, last, err = l.Next(); err != nil {
			return err
		}
		if last {
			h := k.header(about.Revision)
			m.header, m.more, m.count = &h, about.More, about.Count
		}
		if err := s.SendMsg(m); err != nil {
			return err
		}
	}
	return nil
}

// rangeChunk is one RangeStreamResponse. Only the last one has a header, more and count.
type rangeChunk struct {
	header *wire.Header
	elems  []byte // the kvs of the response, encoded
	more   bool
	count  int64
}

func (m *rangeChunk) marshal() mem.BufferSlice {
	var end []byte
	n := len(m.elems)
	if m.header != nil {
		end = wire.AppendRangeTail(nil, m.more, m.count)
		n += m.header.Size() + len(end)
	}
	head := wire.AppendRangeStreamLen(make([]byte, 0, 64), n)
	if m.header != nil {
		head = m.header.Append(head)
	}
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(m.elems), mem.SliceBuffer(end)}
}
