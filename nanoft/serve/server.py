"""A local page and an endpoint for trained models: python -m nanoft serve out/wikitext out/sst2

The page is at http://127.0.0.1:8000. Programs use the paths of OpenAI's interface, with its fields and errors:

    GET  /v1/models
    POST /v1/completions   model prompt max_tokens temperature top_p n stop seed stream logprobs echo    (a GPT)
    POST /v1/embeddings    model input                                                               (an encoder)
    POST /v1/classify      model input explain     (a fine-tuned model; input: texts, or rows as {"text": ...})
    POST /v1/fill          model input top_k       (a pretrained encoder; input: texts with <|mask|>)
"""

import hmac
import ipaddress
import json
import secrets
import select
import signal
import socket
import time
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from nanoft import UserError, config
from nanoft.serve.answers import ANSWERS, FORMS, Completion, abilities, read
from nanoft.serve.api import Model
from nanoft.serve.worker import Refused, Request, Worker
from nanoft.tasks import inputs

MAX_BODY = 2**18  # bytes of a request
POLICY = ("default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
          "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}  # of errors, else invalid_request_error


@dataclass
class Options:
    host: str = "127.0.0.1"  # where to listen; 0.0.0.0 lets other machines in, and wants a token
    port: int = 8000         # 0 takes any that is free
    token: str = ""          # a secret: programs send "Authorization: Bearer TOKEN", the page asks for it
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # as in sample.py


def check(options: Options) -> list[str]:
    problems = [f"port={options.port} must lie between 0 and 65535"] * (not 0 <= options.port < 65536)
    if not is_loopback(options.host) and not options.token:
        problems.append(f"host={options.host} lets other machines in; give a --token, or leave --host out")
    return problems


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait to be taken

    def __init__(self, options: Options, models: dict[str, Model]):
        """models: by the name that clients call them. Raises UserError where the address cannot be listened on."""
        for model in models.values():
            model.need(model.kind != "image", "would open any file that a client names", "use sample.py --image=FILE")
        self.options, self.created = options, int(time.time())
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            super().__init__((options.host, options.port), Handler)
        except OSError as error:
            raise UserError(f"host={options.host} port={options.port} cannot be listened on ({error.strerror}); give "
                            "another --port, or --port=0 for any") from None
        self.workers = {name: Worker(model) for name, model in models.items()}

    def handle_error(self, request, client_address):
        """A client that has gone away is no error."""

    def worker(self, name: str) -> Worker:
        if name not in self.workers:
            raise Refused(404, f"there is no model {name[:80]!r}; there are {', '.join(self.workers)}")
        return self.workers[name]

    def describe(self, name: str) -> dict:
        model = self.worker(name).model
        return {"id": name, "object": "model", "created": self.created, "owned_by": "nanoft", "kind": model.kind,
                "can": abilities(model), "reads": inputs.TO_PREDICT.get(model.kind, ("text",))}

    def stop(self) -> None:
        self.server_close()
        for worker in self.workers.values():
            worker.stop()


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version, protocol_version, default_request_version = "nanoft", "", "HTTP/1.1", "HTTP/1.1"
    disable_nagle_algorithm = True  # else the second write of an answer waits 40 ms for the client to confirm the first
    timeout = 30  # seconds for the next bytes of a request, or for the client to take those of the answer

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def answer(self, method) -> None:
        """Send what method(path) answers, or one sentence on what is wrong."""
        try:
            self.check_caller()
            method(unquote(urlsplit(self.path).path))
        except Refused as refused:
            self.fail(refused.status, str(refused))
        except UserError as error:
            self.fail(400, str(error))
        except TimeoutError:
            self.fail(408, f"nothing more came for {self.timeout} seconds; send the request again")
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self.fail(500, f"an error in the server ({type(error).__name__}); its terminal shows more")

    def get(self, path: str) -> None:
        self.close_connection |= "Content-Length" in self.headers  # a body that nobody reads
        if path == "/":
            return self.send(200, self.server.page, "text/html; charset=utf-8")
        self.check_token()
        if path == "/v1/models":
            data = [self.server.describe(name) for name in self.server.workers]
            return self.send_json(200, {"object": "list", "data": data})
        if not path.startswith("/v1/models/"):
            raise Refused(404, f"there is no {path[:80]!r} to get; there are / and /v1/models")
        self.send_json(200, self.server.describe(path.removeprefix("/v1/models/")))

    def post(self, path: str) -> None:
        self.check_token()
        what = path.removeprefix("/v1/")
        if what not in FORMS or what == path:
            raise Refused(404, f"there is no {path[:80]!r} to post to; there are /v1/{', /v1/'.join(FORMS)}")
        body = read(self.read_body(), FORMS[what])
        name, worker = body["model"], self.server.worker(body["model"])
        if what not in (can := abilities(worker.model)):
            raise Refused(400, f"the model {name} does not answer {path}, only {' and '.join(can)}; name another")
        about = {"id": f"{what[:4]}-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
        if what == "completions":
            return self.complete(Completion(worker, body, self.alive), about | {"object": "text_completion"})

        def ask(request: Request):
            worker.submit(request)
            return request.result(self.alive)

        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        self.send_json(200, about | {"object": "list"} | ANSWERS[what](worker, body, given, ask))

    def complete(self, completion: Completion, about: dict) -> None:
        """The choices of a completion, whole or, with stream, as server-sent events that end with [DONE]."""
        try:
            if not completion.body.get("stream"):
                return self.send_json(200, about | {"choices": completion.choices()} | completion.total())
            self.send(200, None, "text/event-stream")
            for index in range(len(completion.requests)):
                for part in completion.parts(index):
                    self.event(about | {"choices": [part]})
            if completion.body.get("stream_options", {}).get("include_usage"):
                self.event(about | {"choices": []} | completion.total())
            self.wfile.write(b"data: [DONE]\n\n")
        finally:
            for request in completion.requests:  # nobody waits for the rest
                request.done = True

    # ---- what is asked of a request ----------------------------------------------------------------------------------

    def check_caller(self) -> None:
        """Refuse pages of other sites: those that reach it under another name (DNS rebinding), or of another origin."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        try:
            name, caller = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            raise Refused(400, "the Host or Origin header is malformed; call the server by its address") from None
        own = self.server.options.host
        if is_loopback(own) and name not in ("localhost", "127.0.0.1", "::1", own):
            raise Refused(403, "the Host header names another host; call this server by its address, as 127.0.0.1")
        if origin is not None and caller != host:
            raise Refused(403, "pages of other origins may not call this server; use its own page, or a program")

    def check_token(self) -> None:
        given, token = self.headers.get("Authorization", "").removeprefix("Bearer "), self.server.options.token
        if token and not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            raise Refused(401, "this server wants its token; send the header Authorization: Bearer TOKEN")

    def read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":  # a form of another site's page cannot be that
            raise Refused(415, "the body must be JSON; send the header Content-Type: application/json")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "the size of the body is not given; send a Content-Length, and no Transfer-Encoding")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(413, f"the body has more than {MAX_BODY:,} bytes; send less at once")
        return self.rfile.read(int(length))

    def alive(self) -> None:
        """Raise ConnectionError where the client has gone away."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError

    # ---- what is sent ------------------------------------------------------------------------------------------------

    def event(self, content: dict) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def send(self, status: int, data: bytes | None, kind: str) -> None:
        """data: the body, or None where it follows and ends with the connection."""
        self.close_connection |= data is None or status >= 400
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
                   "Content-Security-Policy": POLICY, "Retry-After": "2" if status == 429 else "",
                   "WWW-Authenticate": "Bearer" if status == 401 else "", "Connection": "close" * self.close_connection,
                   "Content-Length": "" if data is None else str(len(data))}
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data or b"")

    def send_json(self, status: int, content: dict) -> None:
        self.send(status, json.dumps(content).encode(), "application/json")

    def fail(self, status: int, sentence: str) -> None:
        """The sentence in OpenAI's form. What still comes is read, for else the client might not see the answer."""
        error = {"message": sentence, "type": KINDS.get(status, "invalid_request_error"), "param": None, "code": status}
        try:
            self.send_json(status, {"error": error})
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(256):
                if not self.rfile.read1(2**16):
                    break
        except OSError:
            self.close_connection = True

    def send_error(self, code, message=None, explain=None):
        """What http.server finds wrong before the request is read: a malformed line, an unknown method."""
        status = {501: 405, 505: 400}.get(code, code)
        self.fail(status, f"{message or 'malformed request'}; send an HTTP/1.1 GET or POST")

    def log_message(self, *args):
        """Nothing: the terminal shows errors only."""


def names(paths: list[str]) -> list[str]:
    """A name for each model: the last part of its path, or as many parts as tell them apart. Raises UserError."""
    parts = [(path.parent if path.is_file() else path).parts for path in (Path(p).resolve() for p in paths)]
    for n in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-n:]) for part in parts]
        if len({*found}) == len(found):
            return found
    raise UserError("a model is given twice; give each once")


def main():
    options, paths = config.load_tool(Options, "serve out/wikitext out/sst2", check=check)
    server = Server(options, dict(zip(names(paths), [Model(path, options.device, options.dtype) for path in paths])))
    for name, worker in server.workers.items():
        print(f"{name}: {', '.join(abilities(worker.model))}")
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nstopped")
    finally:
        server.stop()
