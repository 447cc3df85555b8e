"""A Weights & Biases without an account or a network: what offline runs wrote, and a server that answers a little."""

import gzip
import http.server
import json
import struct
import threading
import time


def read_back(folder, kind: str = "offline-run") -> list:
    """Return the records of the only run file below `folder`: protobufs of wandb in a LevelDB log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the service has written everything once it is gone
    (file,) = folder.glob(f"wandb/{kind}-*/run-*.wandb")
    data, position, parts, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history_of(records: list) -> list[dict]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


class FakeServer:
    """Answers as much of the W&B protocol as an online run asks for, and keeps what it was sent.

    `answer` is how: ok, a status code, hang (60 s), hold (until `release` is set), or what some tests name.
    """

    def __init__(self, answer: str) -> None:
        fake = self
        self.answer = answer
        self.release = threading.Event()
        self.history: list[str] = []
        self.queries: list[str] = []
        self.variables: list[dict] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, code: int, body: object = None) -> None:
                data = json.dumps(body or {}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(200)

            do_PUT = do_GET

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                body = json.loads(data or b"{}")
                if fake.answer == "hold":
                    fake.release.wait(60)
                if fake.answer.isdigit():
                    self.reply(int(fake.answer))
                elif fake.answer == "hang" or (fake.answer == "stall" and "rtifact" in body.get("query", "")):
                    time.sleep(60)
                elif fake.answer == "denied":
                    self.reply(401, {"errors": [{"message": "user is not logged in"}]})
                elif fake.answer == "full" and "upsertBucket" in body.get("query", ""):
                    self.reply(403, {"errors": [{"message": "storage limit exceeded"}]})
                elif self.path.endswith("/graphql"):
                    fake.queries.append(body["query"])
                    fake.variables.append(body.get("variables") or {})
                    self.reply(200, {"data": fake.graphql(body)})
                else:
                    for file in body.get("files", {}).values():
                        fake.history += file["content"]
                    self.reply(200, {"exitcode": None, "limits": {}})

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def graphql(self, body: dict) -> dict:
        if "viewer" in body["query"]:
            return {"viewer": {"id": "1", "entity": "me", "flags": "{}"}}
        if "upsertBucket" in body["query"]:
            name = body["variables"].get("name", "x")
            project = {"name": "sae", "entity": {"name": "me"}}
            bucket = {"id": name, "name": name, "displayName": name, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in body["query"]:
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"features": []}, "model": None}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve(answer: str, monkeypatch) -> FakeServer:
    server = FakeServer(answer)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    return server
