"""A server that costs nothing: the same 64-token answer to every request, after a delay.

    python -m benchmarks.scripted_server DELAY_SECONDS

Prints its port, then serves until it is killed. `GET /most` tells the most requests that it held at once.
"""

import asyncio
import json
import sys

IDS = list(range(64))
ANSWER = {
    "choices": [{"message": {"content": "word " * 64}, "finish_reason": "stop", "token_ids": IDS}],
    "prompt_token_ids": list(range(100)),
    "usage": {"completion_tokens": 64},
}


class Scripted:
    """Counts what it holds."""

    def __init__(self, delay: float) -> None:
        self.delay, self.held, self.most = delay, 0, 0
        self._body = json.dumps(ANSWER).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                writer.write(_response(await self._answer(head)))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"GET /most"):
            return json.dumps(self.most).encode()
        if head.startswith(b"GET"):
            return b'{"data": [{"id": "scripted"}]}'
        self.held += 1
        self.most = max(self.most, self.held)
        await asyncio.sleep(self.delay)
        self.held -= 1
        return self._body


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def main() -> None:
    server = await asyncio.start_server(Scripted(float(sys.argv[1])).serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
