// The service behind every front: answers each request with its own path, so that the client can
// see that it got the answer to its question.
//
// A case whose number is odd waits, 3 or 10 ms: answers then come in another order than requests,
// and requests overlap in the front. One event loop, which keeps any number of connections.
'use strict';
const http = require('http');

const DELAYS_MS = [0, 3, 0, 10];

const server = http.createServer((request, response) => {
  const answer = () => response.end(request.url);
  const found = /^\/case\/(\d+)$/.exec(request.url);
  const delay = found ? DELAYS_MS[Number(found[1]) % DELAYS_MS.length] : 0;
  if (delay) setTimeout(answer, delay);
  else answer();
});
// Fronts keep connections open; one that this side closes for being idle would fail a request.
server.keepAliveTimeout = 0;
server.listen(Number(process.argv[2]), '127.0.0.1', 512);
