// A server of HTTP/2 in clear text, and with --backend a client of another one, all calls on one
// connection. Prints {"port": N}.
//
//   /hello       answers at once
//   /status/N    answers with that status
//   /bytes/N     answers with N bytes
//   /fan/N       asks the backend for N things at once, and answers when all have come
//   a call       application/grpc: one message back, and status 0, or 5 for a method that ends in
//                Missing
'use strict';
const http2 = require('http2');

const arguments_ = process.argv.slice(2);
const backend = arguments_[arguments_.indexOf('--backend') + 1];
let session;

function ask(path, headers, body) {
  session = session || http2.connect(`http://${backend}`);
  return new Promise((resolve) => {
    const stream = session.request({':path': path, ...headers}, {endStream: body === undefined});
    stream.on('close', resolve);
    stream.on('error', () => {});
    stream.resume();
    if (body !== undefined) stream.end(body);
  });
}

const message = Buffer.from([0, 0, 0, 0, 3, 10, 1, 97]);

function call(stream, path) {
  stream.respond({':status': 200, 'content-type': 'application/grpc'}, {waitForTrailers: true});
  const status = path.endsWith('Missing') ? '5' : '0';
  stream.on('wantTrailers', () => stream.sendTrailers({'grpc-status': status}));
  stream.end(message);
}

async function fan(stream, count) {
  const calls = [];
  for (let number = 0; number < count; number += 1) {
    const rpc = {':method': 'POST', 'content-type': 'application/grpc', te: 'trailers'};
    if (number % 4 === 0) calls.push(ask(`/hello/${number}`, {}));
    else if (number % 4 === 1) calls.push(ask(`/bytes/${40 * number}`, {}));
    else if (number % 4 === 2) calls.push(ask(`/test.Store/Find${number}`, rpc, message));
    else calls.push(ask(`/test.Store/${number}Missing`, rpc, message));
  }
  await Promise.all(calls);
  stream.respond({':status': 200});
  stream.end(`${count}\n`);
}

const server = http2.createServer();
server.on('stream', (stream, headers) => {
  const [, what, count] = headers[':path'].split('?')[0].split('/');
  stream.on('error', () => {});
  stream.resume();
  stream.on('end', () => {
    if (headers['content-type'] === 'application/grpc') call(stream, headers[':path']);
    else if (what === 'fan') fan(stream, Number(count));
    else if (what === 'status') { stream.respond({':status': Number(count)}); stream.end('status\n'); }
    else { stream.respond({':status': 200}); stream.end(what === 'bytes' ? Buffer.alloc(Number(count), 'b') : 'hello\n'); }
  });
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({port: server.address().port})));
