// The service and its client by grpc-js: see README.md.
'use strict';
const grpc = require('@grpc/grpc-js');

const KINDS = ['Unary', 'Collect', 'Watch', 'Chat', 'Missing', 'Broken', 'Slow', 'Gone'];
const NUMBERS = 4000;
const LARGE = 20000;
const DEADLINE_MS = 50;
const OWN = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
const seen = {};
const bytes = (value) => value;
const NAMES = Object.fromEntries(Object.entries(grpc.status).map(([name, code]) => [code, name]));
const now = () => String(BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n);

function definition(method, requestStream, responseStream) {
  return {
    path: `/shop.Store/${method}`, requestStream, responseStream,
    requestSerialize: bytes, requestDeserialize: bytes,
    responseSerialize: bytes, responseDeserialize: bytes,
  };
}

// Every method is a stream both ways, which on the wire is what its messages make it.
function serve(kind, call) {
  if (kind === 'Chat') {
    call.on('data', (message) => call.write(message));
    call.on('end', () => call.end());
    return;
  }
  call.on('data', () => {});
  call.on('error', () => {});
  call.on('end', () => {
    const fail = (code) => call.emit('error', {code, details: 'as asked'});
    if (kind === 'Missing') { fail(grpc.status.NOT_FOUND); return; }
    if (kind === 'Slow') return;
    call.write(Buffer.alloc(kind === 'Watch' ? LARGE : 5, 'a'));
    if (kind === 'Watch') {
      const more = (then) => setTimeout(() => call.write(Buffer.from('more'), then), 10);
      more(() => more(() => call.end()));
    } else if (kind === 'Broken') fail(grpc.status.INTERNAL);
    else if (kind !== 'Gone') call.end();
  });
}

function startServer() {
  const server = new grpc.Server();
  const definitions = {};
  const handlers = {};
  for (let number = 0; number < NUMBERS; number += 1) {
    const kind = KINDS[number % KINDS.length];
    const method = `${kind}${number}`;
    definitions[method] = definition(method, true, true);
    handlers[method] = (call) => {
      (seen[`shop.Store/${method}`] ??= []).push(...call.metadata.get('traceparent'));
      serve(kind, call);
    };
  }
  server.addService(definitions, handlers);
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    console.log(JSON.stringify({port, pid: process.pid}));
    process.stdin.once('data', () => console.log(JSON.stringify(seen)));
  });
}

function ask(client, number, own) {
  const metadata = new grpc.Metadata();
  if (own) metadata.set('traceparent', OWN);
  const kind = KINDS[number % KINDS.length];
  const path = `/shop.Store/${kind}${number}`;
  const result = {method: path.slice(1), sent: 1, received: 0, start_ns: now()};
  return new Promise((resolve) => {
    const done = (code) => resolve({...result, status: NAMES[code], end_ns: now()});
    const unary = (error, value) => {
      result.received = value === undefined || error ? 0 : 1;
      done(error ? error.code : grpc.status.OK);
    };
    if (kind === 'Unary' || kind === 'Missing') {
      client.makeUnaryRequest(path, bytes, bytes, Buffer.from('hello'), metadata, unary);
      return;
    }
    const send = (stream) => {
      result.sent = 3;
      for (const text of ['one', 'two', 'three']) stream.write(Buffer.from(text));
      stream.end();
    };
    if (kind === 'Collect') {
      send(client.makeClientStreamRequest(path, bytes, bytes, metadata, unary));
      return;
    }
    const options = kind === 'Slow' ? {deadline: Date.now() + DEADLINE_MS} : {};
    const hello = Buffer.from('hello');
    const stream = kind === 'Chat'
      ? client.makeBidiStreamRequest(path, bytes, bytes, metadata)
      : client.makeServerStreamRequest(path, bytes, bytes, hello, metadata, options);
    stream.on('data', () => {
      result.received += 1;
      if (kind === 'Gone') stream.cancel();
    });
    stream.on('error', () => {});
    stream.on('status', (status) => done(status.code));
    if (kind === 'Chat') send(stream);
  });
}

async function startClient(port, count, parallel, own) {
  console.log(JSON.stringify({pid: process.pid}));
  await new Promise((resolve) => process.stdin.once('data', resolve));
  process.stdin.destroy();
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
  let next = 0;
  const worker = async () => {
    while (next < count) console.log(JSON.stringify(await ask(client, next++, own)));
  };
  await Promise.all(Array.from({length: parallel}, worker));
  client.close();
}

if (process.argv[2] === 'serve') startServer();
else startClient(...process.argv.slice(3, 6).map(Number), Boolean(process.env.SEND_OWN));
