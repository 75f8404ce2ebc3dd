// Calls a server as Node programs do, when told: for each line of input, `MODE COUNT`, it sends so
// many requests over eight kept connections and prints a line of JSON: how many failed.
'use strict';
const http = require('http');
const readline = require('readline');

const port = Number(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const BODY = 'b'.repeat(3000);

function ask(number, done) {
  // By length, in chunks, and without a body.
  const kind = ['body', 'chunks', 'none'][number % 3];
  const options = { host: '127.0.0.1', port, agent, path: `/node/${kind}`, method: 'POST' };
  if (kind === 'body') options.headers = { 'Content-Length': BODY.length };
  if (kind === 'none') options.method = 'GET';
  const call = http.request(options, (response) => {
    let text = '';
    response.on('data', (piece) => { text += piece; });
    response.on('end', () => done(response.statusCode === 200 && text === 'ok' ? null : text));
  });
  call.on('error', (error) => done(String(error)));
  if (kind === 'chunks') {
    call.write(BODY);
    call.write(BODY);
  }
  call.end(kind === 'body' ? BODY : undefined);
}

console.log(JSON.stringify({ ready: true }));
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const count = Number(line.split(' ')[1]);
  let [begun, done, failed, first] = [0, 0, 0, null];
  const next = () => {
    if (begun >= count) return;
    ask(begun++, (failure) => {
      done += 1;
      if (failure !== null) { failed += 1; first = first || failure; }
      if (done === count) console.log(JSON.stringify({ done, failed, first }));
      else next();
    });
  };
  for (let index = 0; index < 16; index += 1) next();
});
