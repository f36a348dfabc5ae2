package differential

import (
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// field is one comparable part of an answer: a path such as kvs[3].mod_revision and its text.
type field struct{ path, value string }

// answer is the result of one operation, in a fixed order.
type answer []field

func (a *answer) add(path string, format string, args ...any) {
	*a = append(*a, field{path, fmt.Sprintf(format, args...)})
}

// failed is the answer of an operation that failed: its gRPC code and exact text.
func failed(err error) answer {
	st := status.Convert(err)
	a := answer{{"error.code", st.Code().String()}, {"error.message", oneBlank(st.Message())}}
	for i, d := range st.Proto().GetDetails() {
		a.add(fmt.Sprintf("error.details[%d]", i), "%s", d.GetTypeUrl())
	}
	return a
}

// answerOf flattens a response, or an error when there is one.
func (s *session) answerOf(m proto.Message, err error) answer {
	if err != nil {
		return failed(err)
	}
	if r, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		s.header(r.GetHeader())
	}
	var a answer
	s.flatten(&a, "", m.ProtoReflect())
	return a
}

func (s *session) flatten(a *answer, prefix string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue // an absent field shows up as a path that only the other side has
		}
		path := prefix + string(fd.Name())
		v := m.Get(fd)
		if fd.IsMap() {
			s.flattenMap(a, path, fd, v.Map())
			continue
		}
		if !fd.IsList() {
			s.flattenValue(a, path, fd, v)
			continue
		}
		list := v.List()
		a.add(path+".len", "%d", list.Len())
		for j := range list.Len() {
			s.flattenValue(a, fmt.Sprintf("%s[%d]", path, j), fd, list.Get(j))
		}
	}
	if u := m.GetUnknown(); len(u) > 0 {
		a.add(prefix+"(unknown fields)", "%x", []byte(u))
	}
}

func (s *session) flattenMap(a *answer, path string, fd protoreflect.FieldDescriptor, m protoreflect.Map) {
	keys := make([]protoreflect.MapKey, 0, m.Len())
	m.Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, key)
		return true
	})
	slices.SortFunc(keys, func(x, y protoreflect.MapKey) int { return strings.Compare(x.String(), y.String()) })
	a.add(path+".len", "%d", len(keys))
	for _, key := range keys {
		s.flattenValue(a, fmt.Sprintf("%s[%q]", path, key.String()), fd.MapValue(), m.Get(key))
	}
}

func (s *session) flattenValue(a *answer, path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	if rule := volatile[fd.FullName()]; rule != nil {
		a.add(path, "%s", rule(v))
		return
	}
	switch fd.Kind() {
	case protoreflect.MessageKind:
		before := len(*a)
		s.flatten(a, path+".", v.Message())
		if len(*a) == before {
			a.add(path, "{}")
		}
	case protoreflect.BytesKind:
		a.add(path, "%s", quote(v.Bytes()))
	case protoreflect.StringKind:
		a.add(path, "%s", s.rename(oneBlank(v.String())))
	case protoreflect.EnumKind:
		a.add(path, "%d", v.Enum())
	case protoreflect.Uint64Kind:
		a.add(path, "%s", s.number(v.Uint()))
	case protoreflect.Int64Kind:
		a.add(path, "%s", s.number(uint64(v.Int())))
	default:
		a.add(path, "%v", v.Interface())
	}
}

// number prints n, or the name that the script has assigned to it.
func (s *session) number(n uint64) string {
	if name, ok := s.names[n]; ok {
		return name
	}
	return fmt.Sprint(int64(n))
}

// rename replaces named numbers inside a text, in their decimal form.
func (s *session) rename(text string) string {
	for n, name := range s.names {
		text = strings.ReplaceAll(text, fmt.Sprint(n), name)
	}
	return text
}

const quoteLimit = 96 // bytes of a value that are printed; the rest is compared by checksum

func quote(b []byte) string {
	if len(b) <= quoteLimit {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%q... (%d bytes, crc32c %08x)", b[:32], len(b), checksum(b))
}

// compare returns one line per field that is not the same on both sides.
func compare(a, b answer) []string {
	index := make(map[string]string, len(b))
	for _, f := range b {
		index[f.path] = f.value
	}
	var lines []string
	seen := make(map[string]bool, len(a))
	for _, f := range a {
		seen[f.path] = true
		if other, ok := index[f.path]; !ok {
			lines = append(lines, fmt.Sprintf("%-28s a: %s   b: (absent)", f.path, f.value))
		} else if other != f.value {
			lines = append(lines, fmt.Sprintf("%-28s a: %s   b: %s", f.path, f.value, other))
		}
	}
	for _, f := range b {
		if !seen[f.path] {
			lines = append(lines, fmt.Sprintf("%-28s a: (absent)   b: %s", f.path, f.value))
		}
	}
	return lines
}
