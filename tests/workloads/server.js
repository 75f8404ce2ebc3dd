// An HTTP server on Node's http: one event loop, keep-alive. Routes, arguments and log lines are
// those of server.py, as far as they are here; --sockets bounds the pool towards the backend. With
// --certificate and --key it speaks TLS, with --authority its calls do.
'use strict';
const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');

const { values: args } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '0' },
    log: { type: 'string' },
    backend: { type: 'string' },
    sockets: { type: 'string', default: '64' },
    'timer-ms': { type: 'string', default: '0' },
    certificate: { type: 'string' },
    key: { type: 'string' },
    authority: { type: 'string' },
  },
});
const CHUNK = 16 * 1024;
const caller = args.authority ? https : http;
const agent = new caller.Agent({
  keepAlive: true,
  maxSockets: Number(args.sockets),
  ca: args.authority && fs.readFileSync(args.authority),
});

function record(request, status, requestBody, responseBody) {
  if (!args.log) return;
  const line = {
    method: request.method, path: request.url.split('?')[0], status,
    request_body: requestBody, response_body: responseBody, port: request.socket.remotePort,
  };
  fs.appendFileSync(args.log, JSON.stringify(line) + '\n');
}

function answer(request, response, body, status, payload, { chunked = false } = {}) {
  const bare = request.method === 'HEAD' || status === 204 || status === 304;
  record(request, status, body.length, bare ? 0 : payload.length);
  if (chunked) {
    response.writeHead(status, { Trailer: 'X-Sum' });
    for (let start = 0; start < payload.length; start += CHUNK) {
      response.write(payload.subarray(start, start + CHUNK));
    }
    response.addTrailers({ 'X-Sum': String(payload.length) });
    response.end();
  } else {
    response.writeHead(status, status === 204 ? {} : { 'Content-Length': payload.length });
    response.end(bare ? undefined : payload);
  }
}

function fetchBackend(path, headers, done) {
  const [host, port] = args.backend.split(':');
  const call = caller.request({ host, port, path, agent, headers }, (reply) => {
    const pieces = [];
    reply.on('data', (piece) => pieces.push(piece));
    reply.on('end', () => done(reply.statusCode, Buffer.concat(pieces)));
  });
  call.on('error', () => done(502, Buffer.from('no backend\n')));
  call.end();
}

function route(request, response, body) {
  const url = new URL(request.url, 'http://test');
  const [, name, ...rest] = url.pathname.split('/');
  const argument = rest.join('/');
  const reply = (status, payload, options) =>
    answer(request, response, body, status, payload, options);
  switch (name) {
    case 'hello':
    case 'sink': return reply(200, Buffer.from('hello\n'));
    case 'echo': return reply(200, body);
    case 'bytes': return reply(200, Buffer.alloc(Number(argument), 'x'));
    case 'status': return reply(Number(argument), Buffer.from('status\n'));
    case 'slow': return setTimeout(() => reply(200, Buffer.from('slow\n')), Number(argument));
    case 'chunked': return reply(200, Buffer.alloc(Number(argument), 'x'), { chunked: true });
    case 'call': {
      const forward = url.searchParams.get('traceparent') === 'forward';
      const { traceparent } = request.headers;
      return fetchBackend(`/${argument}`, forward && traceparent ? { traceparent } : {}, reply);
    }
    default: return reply(404, Buffer.from('no such route\n'));
  }
}

const tls = args.certificate && {
  cert: fs.readFileSync(args.certificate),
  key: fs.readFileSync(args.key),
};
const create = (serve) => (tls ? https.createServer(tls, serve) : http.createServer(serve));
const server = create((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => route(request, response, Buffer.concat(pieces)));
});
server.on('upgrade', (request, socket) => {
  // Only the handshake: what follows is no longer HTTP and comes back as it went.
  record(request, 101, 0, 0);
  const fields = 'Upgrade: websocket\r\nConnection: Upgrade\r\n';
  socket.write(`HTTP/1.1 101 Switching Protocols\r\n${fields}\r\n`);
  socket.pipe(socket);
});
if (Number(args['timer-ms']) > 0) {
  setInterval(() => fetchBackend('/hello?timer', {}, () => {}), Number(args['timer-ms']));
}
server.listen(Number(args.port), args.host, 128, () => {
  console.log(JSON.stringify({ port: server.address().port, pid: process.pid }));
});
