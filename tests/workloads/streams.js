// As streams.py, by Node's http and ws: `serve` and `talk URL`.
'use strict';
const http = require('http');
const readline = require('readline');
const { WebSocket, WebSocketServer } = require('ws');

const MESSAGES = [
  'GET /inside HTTP/1.1\r\nHost: a\r\n\r\n',
  'HTTP/1.1 500 Inside\r\nContent-Length: 0\r\n\r\n',
  'x'.repeat(100000),
  'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
];
const tell = (what) => console.log(JSON.stringify(what));

function serve() {
  const listeners = new Set();
  const server = http.createServer((request, response) => {
    if (request.url === '/events') {
      const fields = { 'Content-Type': 'text/event-stream', 'X-Accel-Buffering': 'no' };
      response.writeHead(200, fields).write('data: 0\n\n');
      listeners.add(response);
      response.on('close', () => listeners.delete(response));
      return;
    }
    for (const listener of listeners) {
      if (request.url === '/finish') listener.end();
      else listener.write('data: more\n\n');
    }
    response.end('ok\n');
  });
  const sockets = new WebSocketServer({ server, path: '/socket' });
  sockets.on('connection', (socket) => {
    socket.on('message', (message) => socket.send(message.toString()));
  });
  server.listen(0, '127.0.0.1', () => tell({ port: server.address().port, pid: process.pid }));
}

async function talk(url) {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  tell({ pid: process.pid });
  await lines.next();
  const socket = new WebSocket(url);
  await new Promise((open, failed) => socket.on('open', open).on('error', failed));
  tell({ open: true });
  await lines.next();
  for (const message of MESSAGES) {
    const echo = new Promise((heard) => socket.once('message', heard));
    socket.send(message);
    if ((await echo).toString() !== message) throw new Error('not an echo');
  }
  const closed = new Promise((done) => socket.on('close', done));
  socket.close();
  await closed;
  tell({ echoed: MESSAGES.length });
  process.exit();
}

const [what, url] = process.argv.slice(2);
if (what === 'serve') serve();
else talk(url);
