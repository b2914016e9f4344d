"""The server as its clients see it: text whole and as a stream, batches, limits, other sites, and what is malformed."""

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import test_explain_page
from conftest import ROOT, command

import nanoft
from nanoft import UserError
from nanoft.serve import server, worker
from nanoft.serve.server import Options

TEXT = "one two three four five six seven"  # in the words of these models, which are random ones of each kind
runs, tokenizer = test_explain_page.runs, test_explain_page.tokenizer


@pytest.fixture(scope="module")
def models(runs):
    return {name: nanoft.load(folder, "cpu", "float32") for name, folder in runs.items()}


@pytest.fixture
def start(models):
    """start(**options): a running server."""
    started = []

    def start(**options):
        one = server.Server(Options(**{"port": 0} | options), models)
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(one)
        return one

    yield start
    for one in started:
        one.shutdown()
        one.stop()


@pytest.fixture
def served(start):
    return start()


def ask(served, path, body=None, headers=None, method=None):
    """(status, what is in the answer) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data,
                       {"Content-Type": "application/json"} | (headers or {}))
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if reply.getheader("Content-Type") == "application/json" else text


def complete(served, **body):
    status, answer = ask(served, "/v1/completions", {"model": "gpt", "prompt": TEXT, "seed": 3} | body)
    assert status == 200, answer
    return answer


def events(text):
    """The events of a stream."""
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


# ---- completions


def test_a_text_whole_and_as_a_stream(served, models):
    answer = complete(served, max_tokens=20, temperature=0.8, top_p=0.95)
    assert answer["object"] == "text_completion" and answer["model"] == "gpt" and answer["id"]
    (choice,) = answer["choices"]
    assert choice["text"] == models["gpt"].generate(TEXT, 20, seed=3)
    ended = len(models["gpt"].tokenizer.encode(choice["text"])) < 20 and answer["usage"]["completion_tokens"] < 20
    assert choice["finish_reason"] == ("stop" if ended else "length")
    n = len(models["gpt"].prompt_ids(TEXT))
    assert answer["usage"]["prompt_tokens"] == n
    assert answer["usage"]["total_tokens"] == n + answer["usage"]["completion_tokens"]
    parts = events(complete(served, max_tokens=20, temperature=0.8, top_p=0.95, stream=True,
                            stream_options={"include_usage": True}))
    assert "".join(part["choices"][0]["text"] for part in parts[:-1]) == choice["text"]
    assert [part["choices"][0]["finish_reason"] for part in parts[-3:-1]] == [None, choice["finish_reason"]]
    assert parts[-1]["usage"] == answer["usage"] and parts[-1]["choices"] == []


def test_a_stop_text_ends_it_and_an_echo_begins_it(served):
    text = complete(served, max_tokens=20)["choices"][0]["text"]
    stop = text[4:7]
    (choice,) = complete(served, max_tokens=20, stop=[stop, "never"], echo=True)["choices"]
    assert choice == {"index": 0, "text": TEXT + text[:text.index(stop)], "logprobs": None, "finish_reason": "stop"}
    assert complete(served, max_tokens=20, stop=stop)["choices"][0]["text"] == text[:text.index(stop)]
    (choice,) = complete(served, max_tokens=2, echo=True, logprobs=1)["choices"]
    assert choice["logprobs"]["text_offset"][0] == len(TEXT)  # of the whole text, in which the prompt stands, too
    assert complete(served, max_tokens=20, stop="")["choices"][0]["text"] == text


def test_several_prompts_and_samples_are_each_as_if_alone(served, models):
    ids = models["gpt"].tokenizer.encode("two three")
    answer = complete(served, prompt=[TEXT, "one"], n=2, max_tokens=12)
    alone = [complete(served, prompt=prompt, seed=seed, max_tokens=12)["choices"][0]["text"]
             for prompt, seed in ((TEXT, 3), (TEXT, 4), ("one", 5), ("one", 6))]
    assert [choice["text"] for choice in answer["choices"]] == alone and alone[0] != alone[1]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert complete(served, prompt=ids)["choices"] == complete(served, prompt=[ids])["choices"]
    assert complete(served, prompt=ids)["choices"] == complete(served, prompt="two three")["choices"]


def test_logprobs_are_the_models_own(served, models):
    model = models["gpt"]
    answer = complete(served, max_tokens=8, logprobs=2, seed=5)
    found, ids = answer["choices"][0]["logprobs"], model.prompt_ids(TEXT)
    assert len(found["tokens"]) == len(found["top_logprobs"]) == len(found["text_offset"]) > 3
    steps = [row[0] for row in model.tokens([ids], len(found["tokens"]), [5], temperature=1.0, top_p=1.0)]
    for at, (step, p, top) in enumerate(zip(steps, found["token_logprobs"], found["top_logprobs"])):
        log_p = model.logits((ids + [step.id for step in steps[:at]])[-32:]).log_softmax(-1)[-1]
        if len(ids) + at <= 32:  # within the context, where the window is the whole text
            assert p == pytest.approx(float(log_p[step.id]), abs=1e-4)
            assert max(top.values()) == pytest.approx(float(log_p.max()), abs=1e-4)


def test_requests_that_wait_are_answered_in_batches(served, models, monkeypatch):
    sizes, tokens = [], models["gpt"].tokens

    def counted(prompts, *args, **kwargs):
        sizes.append(len(prompts))
        return tokens(prompts, *args, **kwargs)

    prompts = ["one " * (i + 1) for i in range(20)]
    alone = [complete(served, prompt=prompt, max_tokens=10, seed=i)["choices"] for i, prompt in enumerate(prompts)]
    monkeypatch.setattr(models["gpt"], "tokens", counted)
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda i: complete(served, prompt=prompts[i], max_tokens=10, seed=i), range(20))
        found = [answer["choices"] for answer in answers]
    assert found == alone and sum(sizes) == 20 and max(sizes) > 2


def test_openais_client(served, models):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.server_port}/v1", api_key="none", max_retries=0)
    assert {model.id for model in client.models.list()} == {*models}
    assert client.models.retrieve("gpt").owned_by == "nanoft"
    whole = client.completions.create(model="gpt", prompt=TEXT, max_tokens=20, seed=3, logprobs=2)
    parts = list(client.completions.create(model="gpt", prompt=TEXT, max_tokens=20, seed=3, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text != ""
    assert whole.usage.completion_tokens > 0 and whole.choices[0].logprobs.tokens
    vectors = client.embeddings.create(model="masks", input=["one", "two"]).data
    np.testing.assert_allclose([item.embedding for item in vectors], models["masks"].embed(["one", "two"]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="does not answer"):
        client.completions.create(model="masks", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        client.completions.create(model="x", prompt="a")


# ---- the other paths


def test_rows_vectors_and_masks_are_those_of_the_library(served, models):
    for name, row in (("classify", TEXT), ("multi", TEXT), ("pair", {"text": TEXT, "pair": "one"}), ("tag", TEXT),
                      ("regress", {"text": "one"}), ("answer", {"question": "which", "context": TEXT})):
        status, answer = ask(served, "/v1/classify", {"model": name, "input": [row, row]})
        expected, _ = models[name].predict([row, row])  # two, for the last bits differ with the size of a batch
        assert status == 200 and [item["index"] for item in answer["data"]] == [0, 1]
        for item in answer["data"]:
            assert json.loads(json.dumps(expected)).items() <= item.items()
    status, answer = ask(served, "/v1/embeddings", {"model": "masks", "input": "one two"})
    np.testing.assert_allclose(answer["data"][0]["embedding"], models["masks"].embed(["one two"])[0], atol=1e-6)
    assert answer["usage"]["total_tokens"] == len(models["masks"].tokenizer.encode("one two")) + 2
    status, answer = ask(served, "/v1/fill", {"model": "masks", "input": "one <|mask|> two <|mask|>", "top_k": 3})
    assert [[(best["token"], best["probability"]) for best in mask] for mask in answer["data"][0]["masks"]
            ] == models["masks"].fill("one <|mask|> two <|mask|>", 3)


@pytest.mark.parametrize("path", ["embeddings", "classify", "fill"])
def test_a_text_that_is_none_spoils_no_batch(served, path):
    status, answer = ask(served, f"/v1/{path}", {"model": "masks" if path != "classify" else path, "input": "\ud800"})
    assert status == 400 and "not JSON" in answer["error"]["message"] and not served.workers["masks"].waiting


def test_words_say_what_they_add(served):
    status, answer = ask(served, "/v1/classify", {"model": "classify", "input": TEXT, "explain": True})
    words = answer["data"][0]["words"]
    assert "".join(word for word, _ in words) == TEXT and any(value for _, value in words)


def test_the_page_needs_nothing_else(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port)
    connection.request("GET", "/")
    reply = connection.getresponse()
    page = reply.read().decode()
    assert reply.status == 200 and "default-src 'none'" in reply.getheader("Content-Security-Policy")
    assert not re.search(r"""(src|href)=["'](?!data:)|https?:|@import|url\(|innerHTML|document\.write""", page)


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_first_packet(served):
    connection, seconds = http.client.HTTPConnection("127.0.0.1", served.server_port), []
    for _ in range(40):
        begun = time.perf_counter()
        connection.request("GET", "/v1/models")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - begun)
    assert min(seconds[-20:]) < 0.03  # 0.04 with Nagle's algorithm


# ---- limits


def test_who_waits_in_too_long_a_queue_is_told_at_once(served, models, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(models["gpt"], "tokens", lambda *a, **k: held.wait(30) and iter(()))
    monkeypatch.setattr(worker, "MAX_WAITING", 3)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, served, "/v1/completions", {"model": "gpt"})
        time.sleep(0.2)  # it is being answered
        waiting = [pool.submit(ask, served, "/v1/completions", {"model": "gpt", "temperature": i}) for i in range(3)]
        while len(served.workers["gpt"].waiting) < 3:
            time.sleep(0.01)
        status, answer = ask(served, "/v1/completions", {"model": "gpt"})
        assert status == 429 and "3 requests wait" in answer["error"]["message"]
        held.set()
        for request in (first, *waiting):
            assert request.result()[0] == 200


def test_a_client_that_goes_away_stops_its_generation(served, models, monkeypatch):
    tokens, steps = models["gpt"].tokens, []

    def slow(*args, **kwargs):
        for step in tokens(*args, **kwargs):
            steps.append(1)
            time.sleep(0.01)
            yield step

    monkeypatch.setattr(models["gpt"], "tokens", slow)
    monkeypatch.setattr(models["gpt"].tokenizer, "special", {"<|endoftext|>": -1})  # it never ends by itself
    for stream in (True, False):
        body = json.dumps({"model": "gpt", "prompt": "one", "max_tokens": 4000, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", served.server_port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            time.sleep(0.5)
            assert steps  # it is written
        time.sleep(1)
        n = len(steps)
        time.sleep(0.2)
        assert len(steps) == n < 400
        steps.clear()
    assert ask(served, "/v1/models")[0] == 200


def test_a_body_that_is_too_large_is_refused_and_the_client_gets_to_know(served):
    status, answer = ask(served, "/v1/embeddings", {"model": "masks", "input": "a" * 2_000_000})
    assert status == 413 and "262,144 bytes" in answer["error"]["message"]
    status, answer = ask(served, "/v1/embeddings", {"model": "masks", "input": ["a"] * 257})
    assert status == 400 and "1 to 256" in answer["error"]["message"]


def test_what_takes_too_long_ends_or_is_refused(served, monkeypatch):
    monkeypatch.setattr(worker, "MAX_SECONDS", -1)
    status, answer = ask(served, "/v1/completions", {"model": "gpt", "max_tokens": 4000})
    assert status == 503 and "has waited" in answer["error"]["message"]


def test_an_error_of_the_model_is_one_requests_and_not_the_servers(served, models, monkeypatch, capsys):
    with monkeypatch.context() as broken:
        broken.setattr(models["classify"], "outputs", lambda rows: 1 / 0)
        status, answer = ask(served, "/v1/classify", {"model": "classify", "input": "one"})
    assert status == 500 and "ZeroDivisionError" in answer["error"]["message"] and "1 / 0" in capsys.readouterr().err
    assert ask(served, "/v1/classify", {"model": "classify", "input": "one"})[0] == 200


# ---- who may call


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"Host": "localhost"}, 200), ({"Host": "127.0.0.1:1"}, 200), ({"Host": "[::1]:8000"}, 200),
    ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example:8000"}, 403), ({"Host": "[::"}, 400),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://localhost:1"}, 403),
    ({"Host": "localhost:7", "Origin": "http://localhost:7"}, 200), ({"Content-Type": "text/plain"}, 415),
])
def test_pages_of_other_sites_are_refused(served, headers, status):
    found, answer = ask(served, "/v1/completions", {"model": "gpt", "max_tokens": 1}, headers)
    assert found == status and (status == 200 or answer["error"]["message"])


def test_a_token_is_asked_for(start):
    served = start(token="secret")
    for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer é"}, 401),
                            ({"Authorization": "Bearer secret"}, 200)):
        headers = {name: value.encode() for name, value in headers.items()}
        assert ask(served, "/v1/models", headers=headers)[0] == status
        assert ask(served, "/v1/completions", {"model": "gpt", "max_tokens": 1}, headers)[0] == status
    assert ask(served, "/")[0] == 200  # the page, which holds nothing, asks for it


@pytest.mark.parametrize("options, words", [
    (["--host=0.0.0.0"], "give a --token"), (["--host=192.168.1.5"], "give a --token"),
    (["--port=99999"], "port=99999"), ([], "given twice"),
])
def test_wrong_options_are_one_sentence(runs, options, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nanoft serve", str(runs["gpt"]), *options] + [str(runs["gpt"])] * (not options))
    with pytest.raises(UserError, match=words):
        server.main()


def test_models_are_named_by_what_tells_them_apart(tmp_path):
    (tmp_path / "best.pt").touch()
    assert server.names([str(tmp_path / "best.pt")]) == [tmp_path.name]
    assert server.names(["out/a/seed1", "out/b/seed1"]) == ["a/seed1", "b/seed1"]


def test_a_port_in_use_is_one_sentence(served, models):
    with pytest.raises(UserError, match="give another --port"):
        server.Server(Options(port=served.server_port), models)


def test_ctrl_c_ends_it(runs):
    process = subprocess.Popen(command("nanoft serve", runs["gpt"], "--port=0", "--device=cpu", "--dtype=float32"),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # `&` ignores it
    assert process.stdout.readline() == "gpt: completions\n"
    port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
    connection = http.client.HTTPConnection("127.0.0.1", port)  # one that stays open
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\nstopped\n" and process.returncode == 0


# ---- what is malformed


def malformed(rng):
    """Bytes of one request that cannot be answered."""
    good = {"model": "gpt", "prompt": "one", "max_tokens": 2}
    values = [[], {}, "x", -1, 1e400, 2**70, True, [[]], [1.5], {"a": 1}, ["a", 1], "\ud800", [[-1]], [99999], 0.5]
    bodies = {
        "completions": lambda: good | rng.choice([
            {"model": rng.choice(["x", "masks", "../gpt", "/etc/passwd", 3, [], None, ""])}, {"prompt": ""},
            {"prompt": rng.choice([[], {}, 3, True, [[]], [1.5], ["a", 1], [[-1]], [99999], [-1], "\ud800", ["", "a"]])
             },
            {"max_tokens": rng.choice([0, -1, 5000, 2**40, 1.5, "9", True, []])}, {"n": rng.choice([0, 17, -1, "1"])},
            {"temperature": rng.choice([-1, 1e9, "hot", [], float("nan"), float("inf"), True])},
            {"top_p": rng.choice([0, 1.1, "x"])}, {"logprobs": rng.choice([-1, 21, "x", 1.5])}, {"stop": [3]},
            {"stream": "yes"}, {"stream_options": {"include_usage": 3}}, {"prompt": ["a"] * 65}, {"seed": -1},
            {"".join(rng.choices("abcdefgh_", k=6)): 1}]),
        "embeddings": lambda: rng.choice([{"model": "masks"}, {"model": "gpt", "input": "a"},
                                          {"model": "masks", "input": rng.choice([v for v in values if v != "x"])}]),
        "classify": lambda: {"model": rng.choice(["pair", "answer"]), "input": rng.choice(values)},
        "fill": lambda: {"model": "masks", "input": rng.choice([*values, "<|mask|> " * 500])},
    }
    path = rng.choice([*bodies])
    data = json.dumps(bodies[path]()).encode()
    headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(data)}
    line = f"POST /v1/{path} HTTP/1.1"
    kind = rng.randrange(12)
    if kind == 0:
        data = rng.randbytes(rng.randrange(1, 80))
    elif kind == 1:
        data = data[:rng.randrange(len(data) - 1)]
    elif kind == 2:
        data = rng.choice([b"[" * 50000, b"{" * 9, b"null", b"[]", b"3", b'"x"', b"{}", b"NaN", b"\xff\xfe{}", b""])
    elif kind == 3:
        headers |= rng.choice([{"Content-Length": rng.choice(["", "-1", "x", "1e3", "²", 10**12, 2**18 + 1])},
                               {"Transfer-Encoding": "chunked"}, {"Content-Type": rng.choice(["", "x", "text/json"])},
                               {"Host": rng.choice(["", "evil", "[", "a" * 999])}, {"Origin": "null"}])
    elif kind == 4:
        line = rng.choice(["POST /v1/completions", "FETCH / HTTP/1.1", "GET / HTTP/9.9", "GET / HTTP/x", "POST", "\x00",
                           "GET /../../etc/passwd HTTP/1.1", "GET /v1/models/.. HTTP/1.1", "DELETE /v1/models HTTP/1.1",
                           "POST / HTTP/1.1", "GET /%2e%2e/x HTTP/1.1", "POST completions HTTP/1.1", "GET //x HTTP/1.1",
                           f"GET /{'x' * 70000} HTTP/1.1", "GET /v1/completions HTTP/1.1", "PUT /v1/fill HTTP/1.1"])
    elif kind == 5:
        return line.encode() + b"\r\n" + rng.choice([b"x" * 70000, b"a: b\r\n" * 200]) + b"\r\n\r\n"
    if kind in (0, 1, 2):
        headers["Content-Length"] = len(data)
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items())]).encode() + b"\r\n\r\n" + data


def reply_to(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered already
        reply = b""
        while part := client.recv(2**16):
            reply += part
    return reply


def check_refusal(reply, data):
    head, _, body = reply.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 4\d\d ", head), (data[:300], reply[:300])
    message = json.loads(body)["error"]["message"]
    assert "\n" not in message and len(message) > 15 and "Traceback" not in message, (data[:300], message)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_malformed_is_refused_with_a_sentence(served, seed, capsys):
    rng = random.Random(seed)
    for _ in range(50):
        data = malformed(rng)
        check_refusal(reply_to(served.server_port, data), data)
    assert ask(served, "/v1/completions", {"model": "gpt"})[0] == 200 and capsys.readouterr().err == ""
