"""A delay line as a process: a TCP proxy that hands everything on a given time later.

The order is kept, the bandwidth is not limited, and what is under way is bounded. It stands for a
distance, not for a network: nothing is lost, and TCP itself sees the loopback on both sides.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys


#: Under way in one direction. 1.2 GB/s for 50 ms, which none of the agents reaches.
MAX_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024


class Line:
    """One direction of one connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._delay_s = delay_s
        self._clock = asyncio.get_running_loop().time
        self._under_way: collections.deque[tuple[float, bytes]] = collections.deque()
        self._bytes = 0
        self._changed = asyncio.Condition()

    async def take(self) -> None:
        """Read until the end of file, which takes as long as the data."""
        data = b"first"
        while data:
            data = await self._reader.read(READ_BYTES)
            async with self._changed:
                self._under_way.append((self._clock() + self._delay_s, data))
                self._bytes += len(data)
                self._changed.notify()
                await self._changed.wait_for(lambda: self._bytes <= MAX_BYTES)

    async def give(self) -> None:
        """Write what is due, until the end of file."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._under_way)
                due, data = self._under_way.popleft()
                self._bytes -= len(data)
                self._changed.notify()
            if (early_s := due - self._clock()) > 0:
                await asyncio.sleep(early_s)
            if not data:
                break
            self._writer.write(data)
            await self._writer.drain()
        if self._writer.can_write_eof():
            self._writer.write_eof()


async def carry(
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter], host: str, port: int, delay_s: float
) -> None:
    """Serve one connection until both sides have ended, or one has broken."""
    writers = [near[1]]
    tasks: list[asyncio.Task[None]] = []
    try:
        far = await asyncio.open_connection(host, port, limit=READ_BYTES)
        writers.append(far[1])
        lines = Line(near[0], far[1], delay_s), Line(far[0], near[1], delay_s)
        steps = (step for line in lines for step in (line.take(), line.give()))
        tasks = [asyncio.create_task(step) for step in steps]
        await asyncio.gather(*tasks)
    except OSError:
        pass  # the other side learns by the end of its connection
    finally:
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.close()


async def run(delay_s: float, targets: list[tuple[str, int]]) -> None:
    """Serve for ever: one port for each of the targets, in their order."""
    ports = []
    for host, port in targets:

        async def serve(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            host: str = host,
            port: int = port,
        ) -> None:
            await carry((reader, writer), host, port, delay_s)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=READ_BYTES, backlog=4096)
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps({"ports": ports}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(**json.loads(sys.argv[1])))
