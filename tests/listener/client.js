// A client that shares no code with the listener: @grpc/grpc-js. Reads one JSON object on stdin, writes one on stdout:
//   {address, tls?: {authority, certificate?, key?}, token?, calls: [{service, method, request, times?, reflected?}]}
//   -> {answers: [[...per time: {messages: [...], status, details}]]}
// Calls run one after the other, the `times` of one call all at once. `reflected` takes the messages' descriptions from
// the server's reflection service instead of the .proto files.
"use strict";
const fs = require("fs");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const root = path.resolve(__dirname, "../..");
const options = { keepCase: true, longs: Number, enums: String, defaults: true, includeDirs: [`${root}/proto`] };
const known = grpc.loadPackageDefinition(
  loader.loadSync(
    [
      "servicectl/_pb/myservice.proto",
      "servicectl/_pb/v1/jobs.proto",
      `${__dirname}/health.proto`,
      `${__dirname}/reflection.proto`,
    ],
    options,
  ),
);
const asked = JSON.parse(fs.readFileSync(0, "utf8"));

function credentials() {
  if (!asked.tls) return grpc.credentials.createInsecure();
  const read = (name) => (asked.tls[name] ? fs.readFileSync(asked.tls[name]) : null);
  return grpc.credentials.createSsl(read("authority"), read("key"), read("certificate"));
}

function client(service, definitions) {
  const type = service.split(".").reduce((found, name) => found[name], definitions);
  return new type(asked.address, credentials(), { "grpc.enable_retries": 0 });
}

function call(from, method, request) {
  const metadata = new grpc.Metadata();
  if (asked.token) metadata.set("authorization", `Bearer ${asked.token}`);
  const deadline = new Date(Date.now() + 50000);
  const messages = [];
  return new Promise((resolve) => {
    const end = (status) => resolve({ messages, status: grpc.status[status.code], details: status.details });
    const definition = from[method];
    if (!definition.responseStream) {
      from[method](request, metadata, { deadline }, (error, message) => {
        if (message) messages.push(message);
        end(error || { code: grpc.status.OK, details: "" });
      });
      return;
    }
    const stream = definition.requestStream ? from[method](metadata, { deadline }) : from[method](request, metadata, { deadline });
    stream.on("data", (message) => messages.push(message));
    stream.on("error", () => {}); // told by status too
    stream.on("status", end);
    if (definition.requestStream) {
      stream.write(request);
      stream.end();
    }
  });
}

// A FileDescriptorSet is nothing but its files, each as field 1.
function descriptorSet(files) {
  const length = (number) => (number < 128 ? [number] : [(number & 127) | 128, ...length(number >>> 7)]);
  return Buffer.concat(files.flatMap((file) => [Buffer.from([0x0a, ...length(file.length)]), file]));
}

async function reflected(service) {
  const reflection = client("grpc.reflection.v1alpha.ServerReflection", known);
  const told = await call(reflection, "ServerReflectionInfo", { file_containing_symbol: service });
  reflection.close();
  const files = told.messages[0].file_descriptor_response.file_descriptor_proto;
  return grpc.loadPackageDefinition(loader.loadFileDescriptorSetFromBuffer(descriptorSet(files), options));
}

async function main() {
  const answers = [];
  for (const wanted of asked.calls) {
    const from = client(wanted.service, wanted.reflected ? await reflected(wanted.service) : known);
    const times = Array.from({ length: wanted.times || 1 }, () => call(from, wanted.method, wanted.request || {}));
    answers.push(await Promise.all(times));
    from.close();
  }
  process.stdout.write(JSON.stringify({ answers }));
}

main();
