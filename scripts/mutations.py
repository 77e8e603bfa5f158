"""What `scripts/mutate` takes out of the source: each mechanism, in the smallest way."""

from __future__ import annotations

from typing import NamedTuple

WIRE = "tests/wire/test_guarantees.py"
UNFINISHED = "tests/pure/test_unfinished.py"
ENDLESS = "tests/hostile/test_endless_message.py"
CONTRACT = "tests/contract"
MEMORY = "tests/memory"
MACHINE = "tests/machine/test_guarantees.py"


class Mutation(NamedTuple):
    """A piece of code, and what stands there instead.

    Attributes:
        file: Below src/trioreq.
        old: What stands there now, exactly once.
        tests: What is to notice it beside the state machine.
        machine: Whether the state machine alone is to notice it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str = ""
    machine: bool = True


MUTATIONS = [
    Mutation(
        "G1 the result of a request that has ended is sent",
        "_connection.py",
        "        if self.ended:\n"
        "            self.connection.drop_late(self)\n"
        "            return False\n",
        "        if self.ended:\n"
        '            self.connection.link.send((*self.envelope, b"late"))\n'
        "            return False\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "G1 at the handing over nobody asks whether the connection is gone",
        "_router.py",
        "                if link.gone:\n",
        "                if False:\n",
        "",
    ),
    Mutation(
        "G2 a reply to an explicit routing id does not look who has it now",
        "_router.py",
        "                    self.read_monitor()  # another connection",
        "                    pass  # another connection",
        WIRE,
    ),
    Mutation(
        "G2 the descriptor alone says who sent a message",
        "_presence.py",
        "opened is not None and opened <= stamp",
        "opened is not None",
        "tests/pure/test_presence.py",
    ),
    Mutation(
        "G2 the gate stamps without looking at the monitor",
        "_router.py",
        "        self._read_up()\n        return self.read_monitor()\n",
        "        self._read_up()\n        return self._presence.stamp\n",
        WIRE,
    ),
    Mutation(
        "G2 newcomers are let in before the ROUTER is read",
        "_router.py",
        "            dry = not self._read()\n",
        "            dry = True\n",
        WIRE,
    ),
    Mutation(
        "G2 what follows a frame is taken for the same message",
        "_router.py",
        "frame.more and self._is_routing_id(frame, link)",
        "False",
        "",
    ),
    Mutation(
        "G2 a routing id of one's own is not known for one",
        "_router.py",
        "content == link.routing_id or self._sender(frame)",
        "self._sender(frame)",
        "",
    ),
    Mutation(
        "G3 who has gone is not looked for between reading and starting",
        "_router.py",
        "            self.read_monitor()\n            while self._unwelcome:\n",
        "            while self._unwelcome:\n",
        WIRE,
    ),
    Mutation(
        "G3 a request that comes after its connection's end is started",
        "_connection.py",
        "        if self.gone:\n",
        "        if False:\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "G3 a granted request is started though it has ended",
        "_lanes.py",
        "                        if call.ended:\n",
        "                        if False:\n",
        f"{MEMORY} {CONTRACT}",
    ),
    Mutation(
        "G3 a plain function is started though its request has ended",
        "_threads.py",
        "            call.check_cancelled()  # the loop",
        "            pass  # the loop",
        "",
    ),
    Mutation(
        "G4 the handler's scope is not cancelled",
        "_connection.py",
        "            scope.cancel(reason=reason)\n",
        "            pass\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "G4 the end of a connection ends nothing",
        "_connection.py",
        "        self.cancel_all(CancelReason.DISCONNECTED)\n",
        "",
        "",
    ),
    Mutation(
        "G4 a request is ended without a reason",
        "_connection.py",
        "        self._cancel_reason = reason\n",
        "",
        "",
    ),
    Mutation(
        "G4 a plain function is not told",
        "_request.py",
        "        if self._cancel_reason is not None:\n",
        "        if False:\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "G4 a turn is given back with the request, and not with its handler",
        "_connection.py",
        "            desk.turns.withdraw(self, call)\n",
        "            desk.turns.withdraw(self, call)\n"
        '        elif outcome not in ("replied", "failed"):\n'
        "            desk.turns.release()\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "G5 what waited is not taken out of its queue",
        "_connection.py",
        "            desk.turns.withdraw(self, call)\n",
        "            pass\n",
        f"{MEMORY} {CONTRACT}",
    ),
    Mutation(
        "G5 links of the gone are kept",
        "_router.py",
        "self._links.pop(number, None)",
        "self._links.get(number)",
        WIRE,
    ),
    Mutation(
        "G5 routing ids of the gone are kept",
        "_router.py",
        "            self._automatic.pop(link.routing_id, None)\n",
        "",
        WIRE,
    ),
    Mutation(
        "G5 connections that are gone are kept",
        "_connection.py",
        "        self.desk.connections.pop(self, None)\n",
        "",
        "",
    ),
    Mutation(
        "G5 timers of the ended are kept",
        "_connection.py",
        "            desk.deadlines.forget(call.timer)\n",
        "            pass\n",
        f"{MEMORY} {CONTRACT}",
    ),
    Mutation(
        "G5 names of the ended are kept",
        "_connection.py",
        "            del self.named[_name(call.envelope, call.header)]\n",
        "            pass\n",
        "",
    ),
    Mutation(
        "G5 queues of the withdrawn are kept",
        "_turns.py",
        "        if not queue:\n            del self._queues[client]\n",
        "",
        "",
    ),
    Mutation(
        "G5 queues have no bound",
        "_turns.py",
        "        if len(queue or ()) >= self._per_client:\n",
        "        if False:\n",
        "",
    ),
    Mutation(
        "G5 the table keeps those who have ended",
        "_presence.py",
        "        return self._holder.pop(descriptor, None)\n",
        "        return self._holder.get(descriptor)\n",
        "",
    ),
    Mutation(
        "G6 the reader is not told when a send has eaten the edge",
        "_router.py",
        "            self._router.nudge()  # a send eats the edge, one that fails too\n",
        "            pass\n",
        WIRE,
    ),
    Mutation(
        "G6 the reader is not told when the gate has eaten the edge",
        "_router.py",
        "        self._router.nudge()\n        return dry\n",
        "        return dry\n",
        WIRE,
    ),
    Mutation(
        "G6 what the gate has read is not started",
        "_router.py",
        "        self._host.start()\n",
        "",
        "",
    ),
    Mutation(
        "G6 the monitor is not read of itself",
        "_router.py",
        "            nursery.start_soon(self._monitor.keep_reading, self.read_monitor)\n",
        "",
        "",
    ),
    Mutation(
        "G6 nobody reads while all lanes wait",
        "_lanes.py",
        "self._call_up(lanes or not self._led)",
        "self._call_up(lanes)",
        "",
    ),
    Mutation(
        "G6 there is no lane to read when all turns are taken",
        "_lanes.py",
        "self._lanes <= self._turns.slots",
        "self._lanes < self._turns.slots",
        "",
    ),
    Mutation(
        "G6 the gate is not read again after admit has eaten the edge",
        "_gate.py",
        "        self._send([(sender, question, verdict)])\n        self._socket.nudge()\n",
        "        self._send([(sender, question, verdict)])\n",
        "",
    ),
    Mutation(
        "G6 one whose queue is full counts as gone",
        "_router.py",
        "        return Unsent.FULL\n",
        "        return Unsent.GONE\n",
        "",
    ),
    Mutation(
        "G7 a REQ that sends anew keeps its last request",
        "_connection.py",
        "        if self.calls and self.lock_step:\n",
        "        if False:\n",
        f"{CONTRACT} {WIRE}",
    ),
    Mutation(
        "turns: one client after the other",
        "_turns.py",
        "            self._queues[client] = queue  # at the end of the round",
        "            self._queues[client] = queue\n"
        "            self._queues.move_to_end(client, last=False)",
        "tests/pure/test_turns.py",
    ),
    Mutation(
        "turns: what is given back is not granted",
        "_turns.py",
        "        if not self._queues:\n            self._free += 1",
        "        if True:\n            self._free += 1",
        "",
    ),
    Mutation(
        "turns: what a thread gives back while another waits is not granted",
        "_threads.py",
        "        if self._queues:\n            with self._lock:\n                self._grant()\n",
        "",
        "tests/pure/test_turns.py",
        machine=False,
    ),
    Mutation(
        "turns: what a thread has given back just before one waits is not granted",
        "_threads.py",
        "            self._grant()\n            return accepted\n",
        "            return accepted\n",
        "tests/pure/test_turns.py",
        machine=False,
    ),
    Mutation(
        "turns: what threads have given back is never taken",
        "_threads.py",
        "            if self._returned and not self._queues:\n",
        "            if False:\n",
        "tests/pure/test_turns.py",
        machine=False,
    ),
    Mutation(
        "turns: the result that comes too late keeps its turn",
        "_lanes.py",
        "                        current_request.reset(token)\n"
        "                        turns.release()\n",
        "                        current_request.reset(token)\n"
        "                        if not call.ended:\n"
        "                            turns.release()\n",
        "",
    ),
    Mutation(
        "deadlines: an earlier one does not end the sleep",
        "_deadlines.py",
        "        if deadline < self._sleep.deadline:\n",
        "        if False:\n",
        "",
    ),
    Mutation(
        "deadlines: the client's own does not count",
        "_connection.py",
        "            left = min(left, header.left / 1000)\n",
        "            pass\n",
        "",
    ),
    Mutation(
        "deadlines: who knows that its time is up is told",
        "_connection.py",
        "(code is Code.TIMED_OUT and self._client_knows_the_time())",
        "False",
        "",
    ),
    Mutation(
        "deadlines: nobody is told that its time is up",
        "_connection.py",
        "(code is Code.TIMED_OUT and self._client_knows_the_time())",
        "code is Code.TIMED_OUT",
        "",
    ),
    Mutation(
        "header: a cancel ends nothing",
        "_connection.py",
        "            call.cancel(CancelReason.CANCELLED)\n",
        "            pass\n",
        f"{CONTRACT} tests/wire/test_client.py",
    ),
    Mutation(
        "header: a cancel ends the request of another name",
        "_connection.py",
        "        call = self.named.get(name)\n",
        "        call = next(iter(self.named.values()), None)\n",
        "",
    ),
    Mutation(
        "shutdown: handlers are cancelled before they have a reason",
        "_server.py",
        "self._scope = trio.CancelScope(shield=True)",
        "self._scope = trio.CancelScope()",
        f"{MEMORY} {CONTRACT} tests/wire/test_lifetime.py",
    ),
    Mutation(
        "shutdown: clients are told nothing",
        "_server.py",
        "        self._transport.gather(self._end_all)\n",
        "",
        "",
    ),
    Mutation(
        "shutdown: newcomers are served during a drain",
        "_connection.py",
        "        if desk.closing:\n            self._refuse",
        "        if False:\n            self._refuse",
        "",
    ),
    Mutation(
        "shutdown: a drain does not notice that all is done",
        "_connection.py",
        "            self.idle.set()\n",
        "            pass\n",
        "",
    ),
    Mutation(
        "shutdown: a drain has no end",
        "_server.py",
        "            with trio.move_on_after(grace):\n",
        "            with trio.move_on_after(math.inf):\n",
        "",
    ),
    Mutation(
        "outbox: replies wait for a handler that waits",
        "_lanes.py",
        "        self._carrier.release()\n        lanes = min",
        "        lanes = min",
        "",
    ),
    Mutation(
        "outbox: replies wait for the next request",
        "_lanes.py",
        "        turns = self._turns\n        self._carrier.release()\n",
        "        turns = self._turns\n",
        "",
    ),
    Mutation(
        "outbox: a reply is handed over twice",
        "_router.py",
        "        outbox, self.outbox = self.outbox, []\n",
        "        outbox = self.outbox[:]\n        del self.outbox[:-1]\n",
        "",
    ),
    Mutation(
        "context: a lane goes on with what a handler left in it",
        "_lanes.py",
        "            return copy_context() == self._lanes.context",
        "            return True",
        f"{MEMORY} {CONTRACT}",
    ),
    Mutation(
        "context: a new lane inherits what a handler left in another",
        "_lanes.py",
        "self.context.run(self._nursery.start_soon, Lane(self).run)",
        "self._nursery.start_soon(Lane(self).run)",
        f"{MEMORY} {CONTRACT}",
    ),
    Mutation(
        "statistics: a result that comes too late is not counted",
        "_connection.py",
        "            self.desk.tally.dropped_gone += 1\n",
        "            pass\n",
        "",
    ),
    Mutation(
        "statistics: a message of one who is forgotten is not counted",
        "_server.py",
        '        tally.ended["never_started"] += 1\n',
        "",
        "",
    ),
    Mutation(
        "statistics: a request that was never started counts as cancelled",
        "_connection.py",
        '            outcome = "never_started"\n',
        "            pass\n",
        "",
    ),
    Mutation(
        "G2 the descriptor alone, on real sockets",
        "_presence.py",
        "opened is not None and opened <= stamp",
        "opened is not None",
        WIRE,
        machine=False,
    ),
    Mutation(
        "G5 the send queue has no limit",
        "_sockets.py",
        "router.sndhwm = send_queue",
        "router.sndhwm = 0",
        WIRE,
        machine=False,
    ),
    Mutation(
        "G5 a batch has no limit where its messages have one frame",
        "_router.py",
        "                        room -= MESSAGE + len(frames[0])\n",
        "",
        MEMORY,
        machine=False,
    ),
    Mutation(
        "G6 the reader stops while requests wait",
        "_router.py",
        "        recv = self._router.recv\n        known",
        "        recv = self._router.recv\n"
        "        if self._host._desk.turns.waiting:\n"
        "            return False\n"
        "        known",
        f"{CONTRACT} {WIRE}",
        machine=False,
    ),
    Mutation(
        "G6 a lane that finds more to read lets nobody else run",
        "_lanes.py",
        " or self.in_a_row >= IN_A_ROW:",
        ":",
        MEMORY,
        machine=False,
    ),
    Mutation(
        "G6 a full monitor stops libzmq",
        "_sockets.py",
        "        monitor.rcvhwm = 0",
        "        monitor.rcvhwm = 1000",
        WIRE,
        machine=False,
    ),
    Mutation(
        "G6 a send to a full or gone connection is not noticed",
        "_sockets.py",
        "        router.router_mandatory = True\n",
        "",
        WIRE,
        machine=False,
    ),
    Mutation(
        "G6 no heartbeats",
        "_sockets.py",
        "        if heartbeat is not None:\n",
        "        if False:\n",
        f"{CONTRACT} {WIRE}",
        machine=False,
    ),
    Mutation(
        "shutdown: a handler's SystemExit ends the others without a word",
        "_lanes.py",
        "                self._lanes.desk.stop()\n",
        "",
        MEMORY,
        machine=False,
    ),
    Mutation(
        "shutdown: the ipc file stays",
        "_endpoint.py",
        "            self._path.unlink(missing_ok=True)",
        "            pass",
        "tests/wire/test_lifetime.py tests/wire/test_endpoints.py",
        machine=False,
    ),
    Mutation(
        "header: the server does not say hello",
        "_connection.py",
        "                self._say_hello(envelope)\n",
        "                pass\n",
        f"{CONTRACT} tests/wire/test_client.py",
        machine=False,
    ),
    Mutation(
        "client: a cancelled caller does not take its request back",
        "_client.py",
        "            self._take_back(correlation)\n\n        return await waiting",
        "\n        return await waiting",
        f"{MEMORY} {CONTRACT} tests/wire/test_client.py",
        machine=False,
    ),
    Mutation(
        "client: a caller who gave up can be woken by a reply",
        "_client.py",
        "            del self._waiting[correlation]\n            late",
        "            late",
        MEMORY,
        machine=False,
    ),
    Mutation(
        "client: replies that came just before the end are not read",
        "_dealer.py",
        "                while self._read():  # what came before the end counts\n"
        "                    pass\n",
        "",
        "tests/wire/test_client.py",
        machine=False,
    ),
    Mutation(
        "endless: nobody looks",
        "_router.py",
        "            if self._sockets.meter is not None:\n",
        "            if False:\n",
        ENDLESS,
        machine=False,
    ),
    Mutation(
        "endless: whoever is heard is watched on",
        "_router.py",
        "            if self._unfinished.watched:\n",
        "            if False:\n",
        ENDLESS,
        machine=False,
    ),
    Mutation(
        "endless: the reader is not asked first",
        "_router.py",
        "            dry = self._read_up()\n",
        "            dry = True\n",
        ENDLESS,
        machine=False,
    ),
    Mutation(
        "endless: whoever has the descriptor by now is ended",
        "_router.py",
        "        if self._presence.holder(descriptor) == number:\n"
        "            self._presence.forget(descriptor)\n"
        "            self._left",
        "        if True:\n            self._presence.forget(descriptor)\n            self._left",
        ENDLESS,
        machine=False,
    ),
    Mutation(
        "endless: its connection is only taken for ended",
        "_router.py",
        "            if held is not None:\n                held.shut_down()\n",
        "",
        ENDLESS,
        machine=False,
    ),
    Mutation(
        "endless: what the room is counted from is what has come",
        "_unfinished.py",
        "            self.watched[number] = Watch(most, now)\n",
        "            self.watched[number] = Watch(0, now)\n",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: who is beyond the room is not given time to be heard",
        "_unfinished.py",
        "            if watch.marked is None:\n"
        "                watch.marked = most\n"
        "            elif least > watch.marked:\n",
        "            if True:\n",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: the mark is what was taken in at the least",
        "_unfinished.py",
        "                watch.marked = most\n",
        "                watch.marked = least\n",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: who is heard does not begin anew",
        "_unfinished.py",
        "                self._began[number] = None\n",
        "                pass\n",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: each look begins anew",
        "_unfinished.py",
        "        if began is None:\n",
        "        if True:\n",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: heartbeats add up",
        "_unfinished.py",
        "self.room + HEARTBEATS * (now - watch.since)",
        "self.room",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: what was not read counts as not said",
        "_unfinished.py",
        "        return dry or ",
        "        return True or ",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: who was heard after all is ended",
        "_unfinished.py",
        "        if watch is None or watch.read is None:",
        "        if watch is None:\n            return True\n        if watch.read is None:",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: what was watched of the gone is kept",
        "_unfinished.py",
        "        self.watched.pop(number, None)\n        self._began",
        "        self._began",
        UNFINISHED,
        machine=False,
    ),
    Mutation(
        "endless: what was not read counts as taken in",
        "_meter.py",
        'int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), "little")',
        "0",
        ENDLESS,
        machine=False,
    ),
]
