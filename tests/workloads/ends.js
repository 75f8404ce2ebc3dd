// How streams of HTTP/2 end, by Node's http2 in clear text.
//
//   serve            prints {"port", "pid"}
//   call PORT SCENE  prints {"pid"}; for a line on standard input makes the requests of the scene,
//                    all on one connection, and prints {"done": [[path, outcome], ...]}: a status,
//                    "cancelled", or the error; {"waiting": true} where another line ends it
//
// Paths: /hello answers at once, /late when /now is asked for, /silent never, /refuse refuses,
// /broken resets after a head, /leave lets the server go away in good order after /late, /calm makes
// it go away because of an error.
'use strict';
const http2 = require('http2');
const readline = require('readline');

const codes = http2.constants;
const tell = (what) => console.log(JSON.stringify(what));

function serve() {
  const late = new Set();
  const server = http2.createServer();
  const answer = (stream) => {
    stream.respond({ ':status': 200 });
    stream.end('hello\n');
  };
  server.on('sessionError', () => {});
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    switch (headers[':path'].split('/')[1]) {
      case 'late': late.add(stream); return;
      case 'silent': return;
      case 'refuse': stream.close(codes.NGHTTP2_REFUSED_STREAM); return;
      case 'broken':
        stream.respond({ ':status': 200 });
        // INTERNAL_ERROR; `close` would end the stream first.
        stream.write('part', () => stream.destroy(new Error('broken')));
        return;
      case 'leave': stream.session.close(); break;
      case 'calm': stream.session.goaway(codes.NGHTTP2_ENHANCE_YOUR_CALM, 0); return;
      case 'now': late.forEach(answer); late.clear(); break;
    }
    answer(stream);
  });
  server.listen(0, '127.0.0.1', () => tell({ port: server.address().port, pid: process.pid }));
}

// What becomes of a request; `begun` when its head has left.
function ask(session, path, code) {
  const stream = session.request({ ':path': path });
  let outcome = 'closed';
  const begun = new Promise((resolve) => stream.on('ready', () => setImmediate(resolve)));
  const ended = new Promise((resolve) => {
    stream.on('response', (headers) => { outcome = headers[':status']; });
    stream.on('error', (error) => { outcome = error.message; });
    stream.on('close', () => resolve([path, outcome]));
  });
  stream.resume();
  const cancel = async () => {
    await begun;
    outcome = 'cancelled';
    stream.close(codes.NGHTTP2_CANCEL);
  };
  return { begun, ended, cancel };
}

const SCENES = {
  // Others go on beside one that is given up.
  async cancel(session) {
    const silent = ask(session, '/silent/1');
    const first = await ask(session, '/hello/1').ended;
    await silent.cancel();
    return [first, await silent.ended, await ask(session, '/hello/2').ended];
  },
  async reset(session) {
    const paths = ['/hello/1', '/refuse/1', '/broken/1', '/hello/2'];
    return Promise.all(paths.map((path) => ask(session, path).ended));
  },
  // The server goes away while two requests wait: they are answered, and that one too.
  async leave(session) {
    const late = [ask(session, '/late/1'), ask(session, '/late/2')];
    await Promise.all(late.map((request) => request.begun));
    const gone = new Promise((resolve) => session.on('goaway', resolve));
    const leave = await ask(session, '/leave/1').ended;
    await gone;
    const other = http2.connect(`http://127.0.0.1:${port}`);
    const now = await ask(other, '/now/1').ended;
    const ended = await Promise.all(late.map((request) => request.ended));
    other.close();
    return [...ended, leave, now];
  },
  async calm(session) {
    const silent = ask(session, '/silent/1');
    await silent.begun;
    const calm = ask(session, '/calm/1');
    return Promise.all([silent.ended, calm.ended]);
  },
  // Somebody ends one of the two programs.
  async wait(session, line) {
    const waiting = [ask(session, '/silent/1'), ask(session, '/silent/2')];
    const hello = await ask(session, '/hello/1').ended;
    tell({ waiting: true });
    await line();
    return [hello, ...await Promise.all(waiting.map((request) => request.ended))];
  },
};

async function call(port, scene) {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const line = () => lines.next();
  tell({ pid: process.pid });
  await line();
  const session = http2.connect(`http://127.0.0.1:${port}`);
  session.on('error', () => {});
  tell({ done: await SCENES[scene](session, line) });
  process.exit();
}

const [what, port, scene] = process.argv.slice(2);
if (what === 'serve') serve();
else call(port, scene);
