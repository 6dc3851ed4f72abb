// Stock grpc-js that finds its service by xDS: calls Echo/Unary through xds:///NAME for as long as it is told to.
//
// Usage: xds_client.js TARGET PROTOSET   (GRPC_XDS_BOOTSTRAP names the bootstrap file)
//
// Prints one JSON line per call: {"instance": …} or {"code": …, "message": …}. Ends when its standard input ends.
// The calls wait for a connection only in the beginning: after the first answer nothing hides an error.
'use strict';

const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');
const loader = require('@grpc/proto-loader');

const [target, protoset] = process.argv.slice(2);
// No call takes so long, but the first one may take some on a busy machine, as it waits for everything.
const DEADLINE_MS = 20_000;
const PAUSE_MS = 10;

xds.register();
const definition = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(protoset));
const { Echo } = grpc.loadPackageDefinition(definition).heddle.echo.v1;
const client = new Echo(target, grpc.credentials.createInsecure());

let done = false;
process.stdin.resume();
process.stdin.on('end', () => {
  done = true;
});

function say(line) {
  // Synchronous: a line that was said is there even if the process is killed after it.
  fs.writeSync(1, `${JSON.stringify(line)}\n`);
}

let answered = false;
let number = 0;

function next() {
  if (done) {
    client.close();
    process.exit(0);
  }
  number += 1;
  const payload = Buffer.from(`call ${number}`);
  const deadline = Date.now() + DEADLINE_MS;
  const options = { deadline };
  // grpc-js has waitForReady only in the metadata's options.
  const metadata = new grpc.Metadata({ waitForReady: !answered });
  client.unary({ payload }, metadata, options, (error, response) => {
    if (error) {
      say({ code: grpc.status[error.code], message: error.details });
    } else if (!payload.equals(response.payload)) {
      say({ code: 'DATA_LOSS', message: `answered ${response.payload}` });
    } else {
      answered = true;
      say({ instance: response.instance });
    }
    setTimeout(next, PAUSE_MS);
  });
}

next();
