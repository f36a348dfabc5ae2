"""Calls a member through gRPC's C core. Arguments: target, and a file of authorities for TLS.

Prints "ready" when all is done but the last part: a watch that the server ends. Then prints how it ended.
"""
import sys
import grpc

raw = lambda b: b


def field(n, b):
    return bytes([n << 3 | 2]) + varint(len(b)) + b


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def channel():
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if len(sys.argv) > 2:
        with open(sys.argv[2], "rb") as f:
            return grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(f.read()), options)
    return grpc.insecure_channel(sys.argv[1], options)


ch = channel()
unary = lambda m: ch.unary_unary("/etcdserverpb." + m, raw, raw)
put, get = unary("KV/Put"), unary("KV/Range")

for i in range(200):
    put(field(1, b"py%d" % i) + field(2, b"value %d" % i), timeout=60)
    assert b"value %d" % i in get(field(1, b"py%d" % i), timeout=60)
big = bytes(4 << 20)
put(field(1, b"big") + field(2, big), timeout=60)
assert big in get(field(1, b"big"), timeout=60)

futures = [get.future(field(1, b"big"), timeout=60) for _ in range(10)]
assert all(big in f.result() for f in futures)

for call, code, text in [
    (lambda: put(b"", timeout=60), grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    (lambda: unary("KV/Nothing")(b"", timeout=60), grpc.StatusCode.UNIMPLEMENTED, "unknown method Nothing for service etcdserverpb.KV"),
    (lambda: get(field(1, b"big"), timeout=0.000001), grpc.StatusCode.DEADLINE_EXCEEDED, ""),
]:
    try:
        call()
        assert False, "no error"
    except grpc.RpcError as e:
        assert e.code() == code and text in e.details(), e

pieces = list(ch.unary_stream("/etcdserverpb.KV/RangeStream", raw, raw)(field(1, b"big"), timeout=60))
assert sum(map(len, pieces)) > len(big)

watch = ch.stream_stream("/etcdserverpb.Watch/Watch", raw, raw)


class Requests:
    """Keeps a stream open."""

    def __init__(self, first):
        self.first = first

    def __iter__(self):
        import threading

        yield self.first
        threading.Event().wait()


def watching(key):
    s = watch(iter(Requests(field(1, field(1, key)))))
    assert next(s)
    return s


w = watching(b"seen")
for i in range(100):
    put(field(1, b"seen") + field(2, b"event %d" % i), timeout=60)
    assert b"event %d" % i in next(w)
w.cancel()
try:
    next(w)
    assert False, "no end"
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.CANCELLED, e

last = watching(b"last")
print("ready", flush=True)
try:
    while True:
        next(last)
except grpc.RpcError as e:
    print("ended:", e.code().name, flush=True)
import os

os._exit(0)  # the threads that keep streams open never end
