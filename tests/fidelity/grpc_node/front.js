// grpc-js: one event loop serves, and one channel leads to the back.
'use strict';
const grpc = require('@grpc/grpc-js');

// A server of grpc-js must know its methods.
const CASES = 10000;
const [port, backPort] = process.argv.slice(2).map(Number);
const bytes = (value) => value;
const back = new grpc.Client(`127.0.0.1:${backPort}`, grpc.credentials.createInsecure());
const ask = (path, request, done) => back.makeUnaryRequest(path, bytes, bytes, request, done);

const server = new grpc.Server();
for (let number = 0; number < CASES; number += 1) {
  const path = `/fidelity/case/${number}`;
  server.register(path, (call, done) => ask(path, call.request, done), bytes, bytes, 'unary');
}
server.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});

let number = 0;
setInterval(() => {
  ask(`/fidelity/background/${number}`, Buffer.from('?'), (error) => {
    if (error) console.error(error.message);
  });
  number += 1;
}, 50);
