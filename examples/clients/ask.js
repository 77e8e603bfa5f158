// Sends one request to a server: node ask.js ENDPOINT BODY MILLISECONDS
//
// npm install zeromq@6

"use strict"

const zmq = require("zeromq")

const MARK = "trioreq-error" // the first frame of an error reply

// Prints each frame of the reply on a line. Returns 0 for a reply, 1 for an error, 3 for a timeout.
async function receive(socket) {
  let frames
  try {
    frames = (await socket.receive()).map(String)
  } catch (error) {
    if (error.code !== "EAGAIN") throw error
    console.error("no reply in time")
    return 3
  }
  const failed = frames.length === 3 && frames[0] === MARK
  const output = failed ? process.stderr : process.stdout
  for (const frame of failed ? frames.slice(1) : frames) { // of an error: its code and text
    output.write(frame + "\n")
  }
  return failed ? 1 : 0
}

async function main(words) {
  if (words.length !== 3) {
    console.error("usage: node ask.js ENDPOINT BODY MILLISECONDS")
    return 2
  }
  const [endpoint, body, timeout] = words
  const socket = new zmq.Request({ linger: 0, receiveTimeout: Number(timeout) })
  try {
    socket.connect(endpoint)
    await socket.send(body)
    return await receive(socket)
  } catch (error) {
    console.error(`${endpoint}: ${error.message}`)
    return 2
  } finally {
    socket.close() // after a timeout this cancels the work at the server
  }
}

main(process.argv.slice(2)).then((code) => { process.exitCode = code })
