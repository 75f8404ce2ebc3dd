// The shop's inventory. Plain Node, no tracing library.
//
// Usage: node inventory.js PORT
"use strict";

const http = require("node:http");

// How many there are of each item; what is not listed does not exist.
const STOCK = { book: 12, lamp: 3, piano: 1 };

// A piano is counted in the cellar, which takes a while.
const SLOW_ITEM = "piano";
const SLOW_MS = 400;

// Looking for the unicorn breaks the shelf.
const BROKEN_ITEM = "unicorn";

function answer(response, status, body) {
  const content = JSON.stringify(body) + "\n";
  response.writeHead(status, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(content),
  });
  response.end(content);
}

function stock(request, response) {
  const item = request.url.replace(/^\/stock\//, "");
  if (item === BROKEN_ITEM) {
    return answer(response, 500, { error: "the shelf broke" });
  }
  if (!Object.hasOwn(STOCK, item)) {
    return answer(response, 404, { error: "no such item" });
  }
  const delay = item === SLOW_ITEM ? SLOW_MS : 0;
  setTimeout(() => answer(response, 200, { item, count: STOCK[item] }), delay);
}

http.createServer(stock).listen(Number(process.argv[2]), "127.0.0.1");
