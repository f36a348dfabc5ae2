package wire

import (
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Unmarshal is proto.Unmarshal for what etcd has stored: strings may hold any bytes, because
// etcd up to 3.6 does not check them. m must be empty. The messages must have no maps, groups,
// packed lists or floating-point numbers. It is meant for the rare case; unknown fields are lost
// if a string is not UTF-8.
func Unmarshal(b []byte, m proto.Message) error {
	err := proto.Unmarshal(b, m)
	if err == nil || !strings.Contains(err.Error(), "UTF-8") {
		return err
	}
	proto.Reset(m)
	return unmarshal(b, m.ProtoReflect(), protowire.DefaultRecursionLimit)
}

func unmarshal(b []byte, m protoreflect.Message, depth int) error {
	if depth--; depth < 0 {
		return errTooDeep
	}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ErrMalformed
		}
		b = b[n:]
		fd := m.Descriptor().Fields().ByNumber(num)
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return ErrMalformed
		}
		body := b[:n]
		b = b[n:]
		var err error
		switch {
		case fd == nil:
		case typ == protowire.BytesType:
			err = setBytes(m, fd, body, depth)
		case typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(body)
			setNumber(m, fd, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setBytes sets a string, bytes or message field; body includes the length.
func setBytes(m protoreflect.Message, fd protoreflect.FieldDescriptor, body []byte, depth int) error {
	v, _ := protowire.ConsumeBytes(body)
	set := func(v protoreflect.Value) {
		if fd.IsList() {
			m.Mutable(fd).List().Append(v)
		} else {
			m.Set(fd, v)
		}
	}
	switch {
	case fd.Kind() == protoreflect.StringKind:
		set(protoreflect.ValueOfString(string(v)))
	case fd.Kind() == protoreflect.BytesKind:
		set(protoreflect.ValueOfBytes(append([]byte{}, v...)))
	case fd.Kind() == protoreflect.MessageKind && fd.IsList():
		return unmarshal(v, m.Mutable(fd).List().AppendMutable().Message(), depth)
	case fd.Kind() == protoreflect.MessageKind && !fd.IsMap():
		return unmarshal(v, m.Mutable(fd).Message(), depth)
	} // another type than the field's: unknown
	return nil
}

func setNumber(m protoreflect.Message, fd protoreflect.FieldDescriptor, v uint64) {
	var x protoreflect.Value
	switch fd.Kind() {
	case protoreflect.BoolKind:
		x = protoreflect.ValueOfBool(v != 0)
	case protoreflect.EnumKind:
		x = protoreflect.ValueOfEnum(protoreflect.EnumNumber(int32(v & math.MaxUint32)))
	case protoreflect.Int32Kind:
		x = protoreflect.ValueOfInt32(int32(v & math.MaxUint32))
	case protoreflect.Int64Kind:
		x = protoreflect.ValueOfInt64(int64(v))
	case protoreflect.Uint32Kind:
		x = protoreflect.ValueOfUint32(uint32(v & math.MaxUint32))
	case protoreflect.Uint64Kind:
		x = protoreflect.ValueOfUint64(v)
	default:
		return // another type than the field's: unknown
	}
	if fd.IsList() {
		m.Mutable(fd).List().Append(x)
	} else {
		m.Set(fd, x)
	}
}
