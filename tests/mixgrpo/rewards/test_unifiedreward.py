"""The reward `unifiedreward`, asked from real HTTP servers that answer well, ill or not at all."""

import asyncio
import base64
import gc
import gzip
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.rewards import unifiedreward
from mixgrpo.rewards.calls import score as asked
from mixgrpo.rewards.limit import limited
from mixgrpo.rewards.unifiedreward import UnifiedReward
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_config
from tests.mixgrpo.rewards.chat_server import Behaviour, Chat, Reply, Request, serving

PROMPT = 'a {cat} with a "hat" 100%'


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifiedreward, "_FIRST_REST_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def shades(count: int) -> Tensor:
    """Grey images [count, 3, 6, 8], no two alike."""
    return torch.linspace(0, 1, count).view(-1, 1, 1, 1).expand(-1, 3, 6, 8)


def brightness(request: Request) -> float:
    """The score that the good server gives an image: 1 for black, 5 for white."""
    return 1 + 4 * float(request.pixels.mean()) / 255


def good(request: Request) -> Reply:
    value = brightness(request)
    return Reply(
        'Word-wise Scores: [["cat", 0.1], ["[No_mistakes]", 0.9]]\n\n'
        f"Alignment Score (1-5): {value}\nCoherence Score (1-5): 1.5\nStyle Score (1-5): 2.5"
    )


def expected(images: Tensor) -> Tensor:
    return 1 + 4 * (images * 255).round().mean((1, 2, 3)) / 255


def one(chat: Chat, **options: Any) -> float:
    """The score of one white image."""
    reward = UnifiedReward(urls=[chat.url], **options)
    return float(reward.score(torch.ones(1, 3, 4, 4), [PROMPT]))


# ---- Answers


def test_scores_are_in_order_however_the_answers_come() -> None:
    delays = random.Random(0)
    images, prompts = shades(24), [f"prompt {i}" for i in range(24)]

    def late(request: Request) -> Reply:
        reply = good(request)
        reply.after = delays.uniform(0, 0.1)
        return reply

    with serving(late) as chat:
        scores = UnifiedReward(urls=[chat.url], at_once=6).score(images, prompts)
    torch.testing.assert_close(scores, expected(images), rtol=0, atol=1e-5)
    assert scores.dtype == torch.float32
    assert 1 < chat.most_at_once <= 6
    sent = {request.text.rsplit("[", 1)[1]: brightness(request) for request in chat.requests}
    assert [sent[f"{prompt}]"] for prompt in prompts] == pytest.approx(scores.tolist())


def test_the_request_is_the_one_that_servers_and_model_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    image = torch.rand(1, 3, 17, 31)
    with serving(good) as chat:
        reward = UnifiedReward(urls=[chat.url + "/"], model="my/model", api_key_env="SOME_KEY")
        reward.score(image, [PROMPT])
    (request,) = chat.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.body["model"] == "my/model"
    assert request.body["temperature"] == 0
    assert request.body["max_tokens"] == 4096
    assert [part["type"] for part in request.body["messages"][0]["content"]] == [
        "image_url",
        "text",
    ]
    exact = np.rint(image[0].permute(1, 2, 0).numpy() * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(request.pixels, exact)


@pytest.mark.parametrize(
    ("score", "sha256"),
    [
        ("alignment", "15fa4e29e86ea27400be46381420630b400a277ccb29a73e62eb2d304a08970e"),
        ("alignment-2.0", "260029b87d359dffeb14fc761c09b02034f8efef94aa2cb91ab57bda7d408657"),
        ("pointwise", "102ddc3d5c92e78cfecc56129fb4719e95059950e5148729912241bda46a76eb"),
    ],
)
def test_the_question_is_that_of_the_models_authors(score: Any, sha256: str) -> None:
    """The digests are of their files' texts with the caption put in, taken from the files."""
    answer = "Alignment Score (1-5): 2.5\nhat (object): 1\nFinal Score: 2.5"
    with serving(lambda request: Reply(answer)) as chat:
        assert one(chat, score=score) == 2.5
    assert hashlib.sha256(chat.requests[0].text.encode()).hexdigest() == sha256


@pytest.mark.parametrize(
    ("score", "answer", "value"),
    [
        ("alignment-2.0", "Alignment Score (1-5): 2.694700002670288\nStyle Score (1-5): 4", 2.6947),
        ("alignment", "**Alignment Score (1-5):** 5\nCoherence Score (1-5): 1", 5.0),
        ("alignment", "Alignment Score (1-5): 4.\nStyle Score (1-5): 2", 4.0),
        ("pointwise", "a cat (animal): 1\na hat (object): 0\nFinal Score: 3", 3.0),
        ("pointwise", "Final Score: 3.25, I think. Final Score: 3.25", 3.25),
    ],
)
def test_the_number_behind_the_label_is_the_score(score: Any, answer: str, value: float) -> None:
    with serving(lambda request: Reply(answer)) as chat:
        assert one(chat, score=score) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot see any image.",
        "Alignment Score: 4",
        "Alignment Score (1-5): X",
        "Alignment Score (1-5): nan",
        "Alignment Score (1-5): 0.5",
        "Alignment Score (1-5): 5.01",
        "Alignment Score (1-5): -3",
        "Alignment Score (1-5): 35",
        "Alignment Score (1-5): 4/5",
        "Alignment Score (1-5): 4 / 5",
        "Alignment Score (1-5): 1.2.3",
        "Alignment Score (1-5): 4e0",
        "Alignment Score (1-5): 4\nAlignment Score (1-5): 2",
        "Final Score: 4",
    ],
)
def test_an_answer_without_a_score_is_an_error_and_never_a_number(answer: str) -> None:
    with serving(lambda request: Reply(answer)) as chat, pytest.raises(RepeatableError) as caught:
        one(chat, retries=2)
    text = str(caught.value)
    for part in (repr(PROMPT), repr(answer), "all 3 answers", "unifiedreward.retries"):
        assert part in text
    assert "\n" not in text
    assert len(chat.requests) == 3


@pytest.mark.parametrize(
    "body",
    ["<html>", "[]", "{}", '{"choices": []}', json.dumps({"choices": [{"message": {}}]})],
)
def test_a_reply_that_is_no_completion_is_an_error(body: str) -> None:
    with serving(lambda request: Reply(body, raw=True)) as chat, pytest.raises(RepeatableError):
        one(chat, retries=0)
    assert len(chat.requests) == 1


def in_turn(*replies: Reply) -> Behaviour:
    """These replies one after another, then good ones."""
    rest = list(replies)
    return lambda request: rest.pop(0) if rest else good(request)


def test_a_wrong_answer_is_asked_for_again() -> None:
    with serving(in_turn(Reply("well"), Reply("Alignment Score (1-5): 9"))) as chat:
        assert one(chat) == 5
    assert len(chat.requests) == 3


def test_a_model_that_fails_when_it_does_not_draw_is_asked_to_draw() -> None:
    """With seeds of the attempts, so that a continued run gets the same scores."""

    def odd(request: Request) -> Reply:
        drawn = request.body["temperature"] == 0.7 and request.body["seed"] == 5
        return good(request) if drawn else Reply("Alignment Score (1-5): X")

    with serving(odd) as chat:
        assert one(chat) == 5
    sent = [(request.body["temperature"], request.body.get("seed")) for request in chat.requests]
    assert sent == [(0, None), (0.7, 1), (0.7, 2), (0.7, 3), (0.7, 4), (0.7, 5)]
    with serving(odd) as chat, pytest.raises(RepeatableError):
        one(chat, retries=4)


def test_failures_leave_as_many_answers_and_answers_as_many_failures() -> None:
    busy, wrong = Reply("busy", 503, raw=True), Reply("well")
    with serving(in_turn(busy, wrong, busy, wrong)) as chat:
        assert one(chat, retries=2) == 5
    assert [request.body.get("seed") for request in chat.requests] == [None, None, 1, 1, 2]


# ---- Servers in trouble


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(status: int) -> None:
    trouble = [Reply("busy", status, raw=True)] * 3
    with serving(in_turn(*trouble)) as chat:
        assert one(chat) == 5
    assert len(chat.requests) == 4


def test_each_failure_doubles_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifiedreward, "_FIRST_REST_S", 0.1)
    with serving(in_turn(*[Reply("busy", 503, raw=True)] * 3)) as chat:
        assert one(chat) == 5
    gaps = np.diff([request.at for request in chat.requests])
    assert (gaps > [0.1, 0.2, 0.4]).all()


@pytest.mark.parametrize(("wanted", "least"), [("0.7", 0.7), ("soon", 0.0)])
def test_a_server_is_left_alone_for_as_long_as_it_asks(wanted: str, least: float) -> None:
    busy = Reply("slow down", 429, {"Retry-After": wanted}, raw=True)
    with serving(in_turn(busy)) as chat:
        assert one(chat) == 5
    first, second = chat.requests
    assert second.at - first.at >= least


def test_a_server_is_not_waited_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifiedreward, "_LONGEST_WANTED_S", 0.1)
    busy = Reply("slow down", 429, {"Retry-After": "99999999"}, raw=True)
    began = time.monotonic()
    with (
        serving(lambda request: busy) as chat,
        pytest.raises(ConnectionError, match=r"slow down \(it asks to wait 99,999,999 s\)"),
    ):
        one(chat, retries=1)
    assert time.monotonic() - began < 30


def test_a_server_may_ask_for_rest_until_a_date() -> None:
    soon = formatdate(time.time() + 3600, usegmt=True)
    with serving(in_turn(Reply("later", 503, {"Retry-After": soon}, raw=True))) as chat:
        reward = limited(UnifiedReward(urls=[chat.url]), 0.5)
        with pytest.raises(TimeoutError, match=r"rewards\.timeout"):
            reward.score(torch.ones(1, 3, 4, 4), [PROMPT])
    assert len(chat.requests) == 1


def test_a_server_that_stays_in_trouble_is_an_error_that_says_what_it_said() -> None:
    failing = Reply("out of\nmemory", 500, raw=True)
    with (
        serving(lambda request: failing) as chat,
        pytest.raises(ConnectionError, match=r"in 3 tries.* HTTP 500 out of memory") as caught,
    ):
        one(chat, retries=2)
    assert chat.url in str(caught.value)
    assert len(chat.requests) == 3


def test_failures_at_the_same_time_count_once() -> None:
    """Sixteen requests under way at one failure must not make the next wait 2 ** 16 as long."""
    trouble = [Reply("busy", 503, raw=True, after=0.05)] * 16
    began = time.monotonic()
    with serving(in_turn(*trouble)) as chat:
        images = shades(16)
        scores = UnifiedReward(urls=[chat.url]).score(images, ["p"] * 16)
    torch.testing.assert_close(scores, expected(images), rtol=0, atol=1e-5)
    assert time.monotonic() - began < 5


def test_a_slow_answer_is_waited_for_and_one_too_slow_is_not() -> None:
    def slow(request: Request) -> Reply:
        reply = good(request)
        reply.after = 0.4
        return reply

    with serving(slow) as chat:
        assert one(chat, timeout=10) == 5
        with pytest.raises(TimeoutError, match="no answer in"):
            one(chat, timeout=0.1, retries=1)


def test_an_answer_that_drips_for_ever_is_given_up() -> None:
    began = time.monotonic()
    with serving(lambda request: Reply(drips=True)) as chat, pytest.raises(TimeoutError):
        one(chat, timeout=0.3, retries=0)
    assert time.monotonic() - began < 3


@contextmanager
def listening(backlog: int) -> Iterator[str]:
    """The address of a socket that accepts (backlog 1 or more) and never answers, or refuses."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if backlog:
            held.listen(backlog)
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"


def test_a_server_that_refuses_cannot_be_reached() -> None:
    with listening(0) as url, pytest.raises(ConnectionError, match=r"in 3 tries") as caught:
        UnifiedReward(urls=[url], retries=2).score(torch.ones(1, 3, 4, 4), [PROMPT])
    assert url in str(caught.value)
    assert "rewards.options.unifiedreward.urls" in str(caught.value)


def test_a_server_that_accepts_and_is_silent_times_out() -> None:
    with listening(8) as url, pytest.raises(TimeoutError, match=r"in 2 tries"):
        UnifiedReward(urls=[url], timeout=0.2, retries=1).score(torch.ones(1, 3, 4, 4), [PROMPT])


def test_nothing_is_left_running_where_a_run_waits_no_longer() -> None:
    with listening(8) as url:
        reward = limited(UnifiedReward(urls=[url], timeout=30), 0.3)
        with pytest.raises(TimeoutError, match=r"rewards\.timeout"):
            reward.score(torch.ones(2, 3, 4, 4), [PROMPT] * 2)
        assert not [t for t in threading.enumerate() if t.name == "reward unifiedreward"]


@pytest.mark.parametrize("backlog", [0, 64])
def test_others_answer_for_a_server_that_is_down(backlog: int) -> None:
    images = shades(12)
    began = time.monotonic()
    with listening(backlog) as down, serving(good) as chat:
        reward = UnifiedReward(urls=[down, chat.url], at_once=4, timeout=0.5)
        scores = reward.score(images, [PROMPT] * 12)
    torch.testing.assert_close(scores, expected(images), rtol=0, atol=1e-5)
    assert len(chat.requests) == 12
    assert time.monotonic() - began < 5


# ---- Large images


def photos(count: int) -> Tensor:
    """Images [count, 3, 720, 720], smooth and with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 30, 30, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (720, 720), mode="bicubic")
    return (smooth + 0.01 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def encoding(images: Tensor) -> float:
    """Seconds that it takes to make PNGs of these images, quickly compressed, one by one."""
    began = time.monotonic()
    for image in images:
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
        base64.b64encode(stream.getvalue())
    return time.monotonic() - began


def test_requests_go_on_while_large_images_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(8).repeat(4, 1, 1, 1)
    alone = encoding(images)
    gaps: list[float] = []

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - began)

    monkeypatch.setattr(unifiedreward, "_wake", watch)

    def quick(request: Request) -> Reply:
        return Reply("Alignment Score (1-5): 3", after=0.1)

    with serving(quick) as chat:
        reward = UnifiedReward(urls=[chat.url], at_once=32)
        began = time.monotonic()
        scores = reward.score(images, ["p"] * 32)
        seconds = time.monotonic() - began
    assert scores.tolist() == [3.0] * 32
    assert len(chat.requests) == 32  # no request failed
    assert max(gaps) < alone / 4  # else connections time out, and answers wait
    assert seconds < 2 * alone + 1


def slowly_encoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each image was begun to be encoded, which takes 0.2 s."""
    begun: list[float] = []

    def slowly(pixels: object) -> str:
        begun.append(time.monotonic())
        time.sleep(0.2)
        return ""

    monkeypatch.setattr(unifiedreward, "_data_url", slowly)
    return begun


def test_encoding_ends_where_a_run_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, before = slowly_encoded(monkeypatch), set(threading.enumerate())
    with listening(8) as url:
        reward = limited(UnifiedReward(urls=[url], at_once=256), 1.0)
        with pytest.raises(TimeoutError, match=r"rewards\.timeout"):
            reward.score(torch.ones(256, 3, 4, 4), [PROMPT] * 256)
        assert set(threading.enumerate()) <= before
    assert 0 < len(begun) < 256


def test_a_call_that_is_ended_within_a_request_says_nothing_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ended(*_: object) -> None:
        raise SystemExit

    begun, before = slowly_encoded(monkeypatch), set(threading.enumerate())
    monkeypatch.setattr(unifiedreward, "_next", ended)
    with pytest.raises(SystemExit):
        UnifiedReward(at_once=256).score(torch.ones(256, 3, 4, 4), [PROMPT] * 256)
    assert set(threading.enumerate()) <= before
    assert 0 < len(begun) < 256
    gc.collect()
    assert not caplog.records


def test_requests_are_shared_among_servers() -> None:
    with serving(good) as first, serving(good) as second:
        UnifiedReward(urls=[first.url, second.url]).score(shades(10), [PROMPT] * 10)
    assert len(first.requests) == len(second.requests) == 5


def test_all_servers_down_is_an_error_that_a_run_can_be_continued_after() -> None:
    with listening(0) as one_url, listening(0) as other_url:
        reward = UnifiedReward(urls=[one_url, other_url], retries=1)
        with pytest.raises(RunError, match="in 4 tries") as caught:
            asked(reward, torch.ones(1, 3, 4, 4), [PROMPT])
    assert not isinstance(caught.value, RepeatableError)


# ---- What the user must mend


@pytest.mark.parametrize(
    ("status", "kind", "mend"),
    [
        (401, ConfigError, r"api_key_env"),
        (403, ConfigError, r"api_key_env"),
        (404, ConfigError, r"rewards\.options\.unifiedreward\.model, my/model,"),
        (400, RepeatableError, r"for the prompt 'a \{cat\}"),
    ],
)
def test_a_refused_request_is_not_repeated_and_names_the_mend(
    status: int, kind: type[Exception], mend: str
) -> None:
    refusal = Reply('{"message": "too many tokens"}', status, raw=True)
    with (
        serving(lambda request: refusal) as chat,
        pytest.raises(kind, match=rf"HTTP {status} .*too many tokens") as caught,
    ):
        one(chat, model="my/model")
    assert len(chat.requests) == 1
    assert chat.url in str(caught.value)
    assert re.search(mend, str(caught.value))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"score": "beauty"}, "score beauty is none of alignment, alignment-2.0, pointwise"),
        ({"urls": []}, "urls"),
        ({"urls": "http://host/v1"}, "urls: must be a list"),
        ({"urls": ["http://host/v1", "host:8000/v1"]}, "urls: entry 2 of 2 is no plain address"),
        ({"at_once": 0}, "at_once"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "api_key_env names an environment variable"),
    ],
)
def test_wrong_options_are_named_before_anything_is_asked(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        UnifiedReward(**options)
    assert named in str(caught.value)
    assert str(caught.value).startswith("rewards.options.unifiedreward: ")


# ---- What a server must not do


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_packed_answer_is_not_unpacked(packing: str) -> None:
    bomb = Reply(body=gzip.compress(bytes(200 << 20)), headers={"Content-Encoding": packing})
    before, most = resident(), 0

    def behave(request: Request) -> Reply:
        nonlocal most
        assert request.headers["Accept-Encoding"] == "identity"
        most = max(most, resident())
        return bomb

    with serving(behave) as chat, pytest.raises(ConnectionError, match="its answer is packed"):
        one(chat, retries=1)
    assert len(chat.requests) == 2
    assert max(most, resident()) - before < 50 << 20


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_an_answer_of_any_length_is_read_up_to_a_limit(status: int) -> None:
    long = Reply(body=b" " * (64 << 20), status=status)
    with serving(lambda request: long) as chat, pytest.raises(ConnectionError) as caught:
        one(chat, retries=0)
    assert "its answer is longer than 1,048,576 bytes" in str(caught.value)


def test_a_deeply_nested_answer_is_no_traceback() -> None:
    nested = Reply("[" * 200_000, raw=True)
    with serving(lambda request: nested) as chat, pytest.raises(RepeatableError, match="no number"):
        one(chat, retries=0)


def test_a_redirect_is_not_followed_and_says_where_it_leads() -> None:
    moved = Reply(status=302, headers={"Location": "http://me:secret@elsewhere/v1"})
    with (
        serving(lambda request: moved) as chat,
        pytest.raises(ConfigError, match=r"sends requests on to http://\.\.\.@elsewhere/v1"),
    ):
        one(chat)
    assert len(chat.requests) == 1


# ---- Passwords


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cret@host:8000/v1",
        "http://s3cret@host/v1",
        "http://me:s3cret/x@host/v1",
        "https://me:@s3cret@host/v1?x=y",
        "user:s3cret@host:8000/v1",
        "http://user:s3cret x@host/v1",
        "http://user:s3cret'E@host/v1",
        "http://host/v1?api_key=s3cret",
        "HTTP:\u0040//u:s3cret@host",
        "http:/user:s3cret@host/v1",
        "http://host/v1#s3cret",
        "http://host s3cret",
        "http://user:s3cret%40h:8000/v1",
        "http://h:8000/v1;token=s3cret",
    ],
)
def test_no_url_holds_a_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="login_env") as caught:
        UnifiedReward(urls=[url])
    assert "s3cret" not in str(caught.value)
    (tmp_path / "run.yaml").write_text(
        f"rewards: {{train: {{unifiedreward: 1.0}}, options: {{unifiedreward: {{urls: "
        f"[http://one:8000/v1, {json.dumps(url)}]}}}}}}\n"
    )
    with pytest.raises(ConfigError, match="entry 2 of 2 is no plain address") as refused:
        load_config(tmp_path / "run.yaml")
    assert "s3cret" not in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path}/run.yaml:1: rewards.options.unifiedreward")
    override = f"rewards.options={{unifiedreward: {{urls: [{json.dumps(url)}]}}}}"
    with pytest.raises(ConfigError, match="is no plain address") as refused:
        load_config(Path(__file__).parents[3] / "sweeps/presets/scenes.yaml", [override])
    assert "s3cret" not in str(refused.value)
    if not any(part in url for part in ("#", "host s3cret", "%40")):  # those look like no login
        own = {"classes": {"own": "a:B"}, "options": {"own": {"base_url": url}}}
        with pytest.raises(ValueError, match=r"own\.base_url: a URL with") as wrong:
            RunConfig.model_validate({"rewards": own})
        assert "s3cret" not in wrong.value.errors()[0]["msg"]


@pytest.mark.parametrize("value", ["a@b.c", "http://host:80/v1?n=3", "C:/weights", "12:30", "a:b"])
def test_what_looks_like_no_login_may_be_an_option(value: str) -> None:
    own = {"classes": {"own": "a:B"}, "options": {"own": {"value": value}}}
    RunConfig.model_validate({"rewards": own})


def test_user_and_password_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LOGIN", "me:s3cret:x")
    with serving(good) as chat:
        one(chat, login_env="MY_LOGIN")
    wanted = base64.b64encode(b"me:s3cret:x").decode()
    assert chat.requests[0].headers["Authorization"] == f"Basic {wanted}"
    monkeypatch.setenv("MY_LOGIN", "s3cret")
    with pytest.raises(ConfigError, match="user:password") as caught:
        one(chat, login_env="MY_LOGIN")
    assert "s3cret" not in str(caught.value)


def test_a_key_that_a_server_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret-key")
    told = Reply("wrong key s3cret-key\x1b[2J", status=401, raw=True)
    with serving(lambda request: told) as chat, pytest.raises(ConfigError) as caught:
        one(chat, api_key_env="SOME_KEY")
    assert "s3cret" not in str(caught.value)
    assert r"wrong key ...\x1b[2J" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"own": {"hub_token": "x"}},
        {"own": {"API_KEY": "x"}},
        {"own": {"note": "hf_abcdefghijklmnopqrstuvwxyz"}},
        {"own": {"headers": ("Authorization: Bearer abc",)}},
    ],
)
def test_no_option_holds_a_key(options: dict[str, Any]) -> None:
    classes = {"own": "some.module:Own"}
    with pytest.raises(ValueError, match="would be kept in"):
        RunConfig.model_validate({"rewards": {"classes": classes, "options": options}})
    fine = {"own": {"token": "cat", "max_token": 3, "api_key_env": "NAME", "at": "a@b.c"}}
    RunConfig.model_validate({"rewards": {"classes": classes, "options": fine}})


def test_a_password_in_a_sweep_ends_it_before_anything_is_written(tmp_path: Path) -> None:
    url = "http://me:s3cret@host/v1"
    (tmp_path / "s.yaml").write_text(
        "name: s\nquestion: q?\nseeds: 1\ngrid: {window.interval: [1, 2]}\n"
        f"set: {{rewards.train: {{unifiedreward: 1.0}}, rewards.options: "
        f'{{unifiedreward: {{urls: ["{url}"]}}}}}}\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-m", "harness.sweep", "s.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "login_env" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["s.yaml"]
