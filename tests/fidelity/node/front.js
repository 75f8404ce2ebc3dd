// One event loop, and an agent with 16 sockets: with more clients than that, calls queue for a
// socket and are written when another request's response has freed one.
'use strict';
const http = require('http');

const [port, backPort] = process.argv.slice(2).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

function ask(path, done) {
  http.get({ host: '127.0.0.1', port: backPort, path, agent }, (reply) => {
    const pieces = [];
    reply.on('data', (piece) => pieces.push(piece));
    reply.on('end', () => done(Buffer.concat(pieces)));
  });
}

const server = http.createServer((request, response) => {
  ask(request.url, (body) => response.end(body));
});
server.keepAliveTimeout = 0;
server.listen(port, '127.0.0.1', 512);

let number = 0;
setInterval(() => ask(`/background/${number++}`, () => {}), 50);
