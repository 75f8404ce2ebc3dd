// The service behind every front: answers each request with its own path, so that the client can
// see that it got the answer to its question.
//
// A case whose number is odd waits, 3 or 10 ms: answers then come in another order than requests,
// and requests overlap in the front. One event loop, which keeps any number of connections.
//
// With BACK_CERTIFICATE, a file that also has its key, it speaks TLS.
'use strict';
const fs = require('fs');
const http = require('http');
const https = require('https');

const DELAYS_MS = [0, 3, 0, 10];

const serve = (request, response) => {
  const answer = () => response.end(request.url);
  const found = /^\/case\/(\d+)$/.exec(request.url);
  const delay = found ? DELAYS_MS[Number(found[1]) % DELAYS_MS.length] : 0;
  if (delay) setTimeout(answer, delay);
  else answer();
};
const file = process.env.BACK_CERTIFICATE;
const pem = file && fs.readFileSync(file);
const server = pem ? https.createServer({ cert: pem, key: pem }, serve) : http.createServer(serve);
// Fronts keep connections open; one that this side closes for being idle would fail a request.
server.keepAliveTimeout = 0;
// What was connected before the agent came connects again.
process.on('SIGHUP', () => server.closeAllConnections());
server.listen(Number(process.argv[2]), '127.0.0.1', 512);
