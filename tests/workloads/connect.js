// Calls of Connect, gRPC-Web and gRPC by @connectrpc/connect-node, in HTTP/1.1 and HTTP/2.
//
//   serve VERSION                  prints {"port", "pid"}
//   call PORT PROTOCOL VERSION     prints {"pid"}; for a line on standard input makes four calls,
//                                  and prints {"done": [[method, outcome], ...]}
//
// VERSION is 1.1 or 2, PROTOCOL connect, grpc-web or grpc. Methods of shop.Store: Get (unary), Miss
// (unary, not found), List (three messages down), Break (one message down, then an error).
'use strict';
const http = require('http');
const http2 = require('http2');
const readline = require('readline');
const { Code, ConnectError, createClient } = require('@connectrpc/connect');
const node = require('@connectrpc/connect-node');
const { createFileRegistry } = require('@bufbuild/protobuf');
const wkt = require('@bufbuild/protobuf/wkt');
const { create } = require('@bufbuild/protobuf');

const tell = (what) => console.log(JSON.stringify(what));

// A service without a schema file: one string up, one string down.
function service() {
  const text = (name) => ({ name, field: [{ name: 'text', number: 1, label: 1, type: 9 }] });
  const method = (name, serverStreaming) => (
    { name, inputType: '.shop.Text', outputType: '.shop.Text', serverStreaming });
  const file = create(wkt.FileDescriptorProtoSchema, {
    name: 'shop.proto', package: 'shop', syntax: 'proto3', messageType: [text('Text')],
    service: [{ name: 'Store', method: [
      method('Get', false), method('Miss', false), method('List', true), method('Break', true)] }],
  });
  return createFileRegistry(file, () => undefined).getService('shop.Store');
}

const STORE = service();

function serve(version) {
  const handler = node.connectNodeAdapter({
    routes: (router) => router.service(STORE, {
      get: (request) => ({ text: request.text }),
      miss: () => { throw new ConnectError('none', Code.NotFound); },
      async* list(request) { for (let n = 0; n < 3; n += 1) yield { text: request.text }; },
      async* break(request) {
        yield { text: request.text };
        throw new ConnectError('broken', Code.Internal);
      },
    }),
  });
  const server = version === '2' ? http2.createServer(handler) : http.createServer(handler);
  server.listen(0, '127.0.0.1', () => tell({ port: server.address().port, pid: process.pid }));
}

async function outcome(call) {
  try {
    await call();
    return 'ok';
  } catch (error) {
    return Code[ConnectError.from(error).code];
  }
}

async function drain(stream) {
  for await (const message of stream) if (message.text !== 'a') throw new Error('not an echo');
}

async function call(port, protocol, httpVersion) {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  tell({ pid: process.pid });
  await lines.next();
  const create = {
    connect: node.createConnectTransport,
    'grpc-web': node.createGrpcWebTransport,
    grpc: node.createGrpcTransport,
  }[protocol];
  const client = createClient(STORE, create({ baseUrl: `http://127.0.0.1:${port}`, httpVersion }));
  const up = { text: 'a' };
  tell({ done: [
    ['Get', await outcome(() => client.get(up))],
    ['Miss', await outcome(() => client.miss(up))],
    ['List', await outcome(() => drain(client.list(up)))],
    ['Break', await outcome(() => drain(client.break(up)))],
  ] });
  process.exit();
}

const [what, ...rest] = process.argv.slice(2);
if (what === 'serve') serve(...rest);
else call(...rest);
