// The service behind the fronts that call by gRPC: any method, answered with its own path, as
// server.js does and with the same delays. On Node's http2 alone, since grpc-js wants to know its
// methods beforehand.
'use strict';
const http2 = require('http2');

const DELAYS_MS = [0, 3, 0, 10];

const server = http2.createServer();
server.on('stream', (stream, headers) => {
  const path = headers[':path'];
  const answer = () => {
    if (stream.destroyed) return;
    stream.respond({':status': 200, 'content-type': 'application/grpc'}, {waitForTrailers: true});
    stream.on('wantTrailers', () => stream.sendTrailers({'grpc-status': '0'}));
    const message = Buffer.alloc(5 + path.length);
    message.writeUInt32BE(path.length, 1);
    message.write(path, 5);
    stream.end(message);
  };
  stream.on('error', () => {});
  stream.resume();
  const found = /\/case\/(\d+)$/.exec(path);
  const delay = found ? DELAYS_MS[Number(found[1]) % DELAYS_MS.length] : 0;
  stream.on('end', () => (delay ? setTimeout(answer, delay) : answer()));
});
server.listen(Number(process.argv[2]), '127.0.0.1', 512);
