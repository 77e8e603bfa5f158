// A ZeroMQ socket in Node, which does what it is told on its standard input.
//
// A line in is a command and its words, a line out the answer to one. Frames are in hexadecimal,
// an empty one is "-". Nothing here knows of trioreq: this is what anybody would write.

"use strict"

const readline = require("node:readline")
const zmq = require("zeromq")
const zmqPackage = require("zeromq/package.json")

const KINDS = { REQ: zmq.Request, DEALER: zmq.Dealer, REP: zmq.Reply, ROUTER: zmq.Router }

let socket

const decode = (word) => (word === "-" ? Buffer.alloc(0) : Buffer.from(word, "hex"))
const encode = (frame) => (frame.length === 0 ? "-" : frame.toString("hex"))

const COMMANDS = {
  async version() {
    return [`Node ${process.versions.node}`, `zeromq ${zmqPackage.version}`, `libzmq ${zmq.version}`]
  },
  async connect(kind, endpoint, ...options) {
    socket = new KINDS[kind](Object.fromEntries(options.map((name) => [name, true])))
    socket.linger = 0
    socket.connect(endpoint)
    return []
  },
  async bind(kind, endpoint) {
    socket = new KINDS[kind]()
    socket.linger = 0
    await socket.bind(endpoint)
    return [socket.lastEndpoint]
  },
  async send(...frames) {
    await socket.send(frames.map(decode))
    return []
  },
  async receive() {
    return (await socket.receive()).map(encode)
  },
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...words] = line.split(" ")
    process.stdout.write((await COMMANDS[command](...words)).join("|") + "\n")
  }
  process.exit(0)
}

main()
