// Calls a member through @grpc/grpc-js. Arguments: target, and a file of authorities for TLS.
//
// Prints "ready" when all is done but the last part: a watch that the server ends. Then prints how it ended.
const grpc = require("@grpc/grpc-js");
const fs = require("fs");
const assert = require("assert");

const raw = (b) => b;
const varint = (n) => {
  const out = [];
  for (; n > 127; n = Math.floor(n / 128)) out.push((n % 128) | 128);
  return Buffer.from([...out, n]);
};
const field = (n, b) => Buffer.concat([Buffer.from([(n << 3) | 2]), varint(Buffer.from(b).length), Buffer.from(b)]);
const creds = process.argv[3] ? grpc.credentials.createSsl(fs.readFileSync(process.argv[3])) : grpc.credentials.createInsecure();
const client = new grpc.Client(process.argv[2], creds, { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 });
const call = (method, req, ms = 60000) =>
  new Promise((yes, no) =>
    client.makeUnaryRequest("/etcdserverpb." + method, raw, raw, req, { deadline: Date.now() + ms }, (err, b) => (err ? no(err) : yes(b))));
const put = (k, v) => call("KV/Put", Buffer.concat([field(1, k), field(2, v)]));
const get = (k) => call("KV/Range", field(1, k));

const watching = (key) => {
  const s = client.makeBidiStreamRequest("/etcdserverpb.Watch/Watch", raw, raw);
  const queue = [], waiting = [];
  let error;
  s.on("data", (b) => (waiting.length ? waiting.shift()[0](b) : queue.push(b)));
  s.on("error", (e) => { error = e; waiting.forEach((w) => w[1](e)); });
  s.write(field(1, field(1, key)));
  return { s, next: () => new Promise((yes, no) => (queue.length ? yes(queue.shift()) : error ? no(error) : waiting.push([yes, no]))) };
};

(async () => {
  for (let i = 0; i < 200; i++) {
    await put("js" + i, "value " + i);
    assert((await get("js" + i)).includes("value " + i));
  }
  const big = Buffer.alloc(4 << 20, "x");
  await put("big", big);
  for (const b of await Promise.all(Array.from({ length: 10 }, () => get("big")))) assert(b.includes(big));

  await assert.rejects(put("", ""), { code: grpc.status.INVALID_ARGUMENT, details: "etcdserver: key is not provided" });
  await assert.rejects(call("KV/Nothing", Buffer.alloc(0)), { code: grpc.status.UNIMPLEMENTED });
  await assert.rejects(call("KV/Range", field(1, "big"), 0), { code: grpc.status.DEADLINE_EXCEEDED });

  let size = 0;
  await new Promise((yes, no) => {
    const s = client.makeServerStreamRequest("/etcdserverpb.KV/RangeStream", raw, raw, field(1, "big"));
    s.on("data", (b) => (size += b.length));
    s.on("end", yes);
    s.on("error", no);
  });
  assert(size > big.length);

  const w = watching("seen");
  await w.next();
  for (let i = 0; i < 100; i++) {
    await put("seen", "event " + i);
    assert((await w.next()).includes("event " + i));
  }
  w.s.cancel();
  await assert.rejects(w.next(), { code: grpc.status.CANCELLED });

  const last = watching("last");
  await last.next();
  console.log("ready");
  try {
    for (;;) await last.next();
  } catch (e) {
    console.log("ended:", grpc.status[e.code]);
  }
  process.exit(0);
})().catch((e) => {
  console.error(e);
  process.exit(1);
});
