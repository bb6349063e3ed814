"""The reward `unifiedreward`: UnifiedReward (arXiv:2503.05236), asked from a server.

The questions are those of its authors (github.com/CodeGoat24/UnifiedReward, inference_llava/,
inference_qwen/); answers are numbers from 1 to 5. Any server with OpenAI's chat completions will
do, such as `vllm serve CodeGoat24/UnifiedReward-qwen-7b` or SGLang's. Images are sent as PNG.

The model does not draw its first answer (temperature 0). One without a score would come again, so
that further ones are drawn, at temperature 0.7 and with the seeds 1, 2, ...: a continued run, which
has the same images, gets the same scores.

An event loop of one call's own sends the requests, while threads of its own encode images; none of
them outlives a run which gives up waiting.
"""

import asyncio
import base64
import io
import json
import math
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from mixgrpo.errors import ConfigError, RepeatableError
from mixgrpo.text.escape import one_line, without_passwords
from mixgrpo.text.secrets import why_no_addresses

if TYPE_CHECKING:
    import httpx
    import numpy as np
    from torch import Tensor

Score = Literal["alignment", "alignment-2.0", "pointwise"]

_AXES = """\
rovide overall assessments for the image along the following axes (each rated from 1 to 5):
- Alignment Score: How well the image matches the caption in terms of content.
- Coherence Score: How logically consistent the image is (absence of visual glitches, object \
distortions, etc.).
- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.

Output your evaluation using the format below:

"""
_SCORES = """\
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

"""
_CAPTION = "Your task is provided as follows:\nText Caption: ["
_MANY = """\
You are presented with a generated image and its associated text caption. Your task is to analyze \
the image across multiple dimensions in relation to the caption. Specifically:
"""
QUESTIONS: dict[Score, str] = {
    # Of the models UnifiedReward-7b-v1.5 and UnifiedReward-qwen-*: point_score_ACS.
    "alignment": _MANY
    + """
1. Evaluate each word in the caption based on how well it is visually represented in the image. \
Assign a numerical score to each word using the format:
   Word-wise Scores: [["word1", score1], ["word2", score2], ..., ["wordN", scoreN], \
["[No_mistakes]", scoreM]]
   - A higher score indicates that the word is less well represented in the image.
   - The special token [No_mistakes] represents whether all elements in the caption were \
correctly depicted. A high score suggests no mistakes; a low score suggests missing or incorrect \
elements.

2. P"""
    + _AXES
    + '---\n\nWord-wise Scores: [["word1", score1], ..., ["[No_mistakes]", scoreM]]\n\n'
    + _SCORES
    + _CAPTION,
    # Of UnifiedReward-2.0-*, which answers with the three scores alone.
    "alignment-2.0": _MANY + "P" + _AXES + _SCORES + _CAPTION,
    # Of all of them: point_score_image_generation.
    "pointwise": """\
You are given a text caption and a generated image based on that caption. Your task is to evaluate \
this image based on two key criteria:
1. Alignment with the Caption: Assess how well this image aligns with the provided caption. \
Consider the accuracy of depicted objects, their relationships, and attributes as described in the \
caption.
2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail \
preservation, color accuracy, and overall aesthetic appeal.
Extract key elements from the provided text caption, evaluate their presence in the generated \
image using the format: 'element (type): value' (where value=0 means not generated, and value=1 \
means generated), and assign a score from 1 to 5 after 'Final Score:'.
"""
    + _CAPTION,
}
"""What is asked, up to the caption, which "]" follows."""
_LABELS: dict[Score, str] = {
    "alignment": "Alignment Score (1-5):",
    "alignment-2.0": "Alignment Score (1-5):",
    "pointwise": "Final Score:",
}
_ANSWER_TOKENS = 4096
_LONGEST_REPLY = 1 << 20
"""Bytes: a hundred times what an answer of that length takes."""
_CONNECT_S = 10.0
_FIRST_REST_S, _LONGEST_REST_S = 0.5, 30.0
"""Of a server after a failure: doubled each time, up to a limit."""
_LONGEST_WANTED_S = 600.0
"""Of a server that says itself how long (Retry-After)."""


def check_options(options: Mapping[str, Any], here: bool = True) -> None:
    """ConfigError for options of `UnifiedReward`, of the right types, that cannot be used.

    `here`: the run has this process's environment; without, what variables hold is not looked at.
    """
    place = "rewards.options.unifiedreward"
    score = options.get("score", "alignment")
    if score not in get_args(Score):
        raise ConfigError(f"{place}: score {score} is none of {', '.join(get_args(Score))}")
    if "urls" in options and (wrong := why_no_addresses(options["urls"])):
        raise ConfigError(f"{place}: urls: {wrong}")
    given = [options.get(k, v) for k, v in (("at_once", 1), ("timeout", 1.0), ("retries", 0))]
    at_once, timeout, retries = given
    if at_once < 1 or not 0 < timeout < math.inf or retries < 0:
        raise ConfigError(
            f"{place}: at_once must be 1 or more, timeout above 0 and retries 0 or more, not "
            f"{at_once}, {timeout} and {retries}"
        )
    names = {key: options.get(key) for key in ("api_key_env", "login_env")}
    for option, name in names.items():
        if name is not None and here and not os.environ.get(name):
            raise ConfigError(
                f"{place}: {option} names an environment variable that is not set; export it"
            )
    login, key = names["login_env"], names["api_key_env"]
    if login is not None and (key or (here and ":" not in os.environ[login])):
        raise ConfigError(
            f"{place}: login_env names an environment variable that must hold "
            "user:password and cannot stand beside api_key_env"
        )


class UnifiedReward:
    """`urls`: of servers with OpenAI's API, with its /v1, used in turn. `model`: its name there.

    `score`: "alignment" (models 1.x) and "alignment-2.0" give the Alignment Score, "pointwise" the
    Final Score. `api_key_env`: the environment variable that holds the key, where one is needed;
    `login_env`: the one that holds user:password, for servers behind HTTP basic authentication.
    `at_once`: requests under way together. `timeout`: seconds for each. `retries`: how often each
    server is asked again after a failure, and how many more answers are drawn where the first has
    no score.
    """

    name = "unifiedreward"

    def __init__(
        self,
        *,
        urls: Sequence[str] = ("http://localhost:8000/v1",),
        model: str = "CodeGoat24/UnifiedReward-qwen-7b",
        score: Score = "alignment",
        api_key_env: str | None = None,
        login_env: str | None = None,
        at_once: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
    ) -> None:
        """ConfigError for options that cannot be used. No server is asked yet."""
        options = {"urls": urls, "score": score, "at_once": at_once, "timeout": timeout}
        options |= {"retries": retries, "api_key_env": api_key_env, "login_env": login_env}
        check_options(options)
        self._servers = [_Server(url.rstrip("/") + "/chat/completions") for url in urls]
        self._model, self._score = model, score
        self._key, self._login = api_key_env, login_env
        self._at_once, self._timeout = at_once, timeout
        self._answers, self._tries = retries + 1, (retries + 1) * len(urls)

    def score(self, images: "Tensor", prompts: list[str]) -> "Tensor":
        """Scores [B] from 1 to 5, of images [B, 3, H, W] in [0, 1].

        ConnectionError or TimeoutError where no server answers after all retries; RepeatableError
        naming the prompt where all answers are without a score, or one refuses the request;
        ConfigError for a key or a model that a server does not know.
        """
        import torch

        pixels = [_bytes(image) for image in images]
        encoders = ThreadPoolExecutor(os.cpu_count(), "encodes images")
        try:
            return torch.tensor(asyncio.run(self._ask_all(pixels, prompts, encoders)))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            encoders.shutdown(cancel_futures=True)

    async def _ask_all(
        self, images: Sequence["np.ndarray"], prompts: list[str], encoders: Executor
    ) -> list[float]:
        """The first error ends all other requests."""
        import httpx

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        # An answer of a few kilobytes that unpacks to gigabytes is not to be had unpacked.
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {os.environ[self._key]}"
        user, _, password = (os.environ[self._login] if self._login else "").partition(":")
        auth = httpx.BasicAuth(user, password) if self._login else None
        limits = httpx.Limits(max_connections=self._at_once)
        timeout = httpx.Timeout(self._timeout, connect=min(_CONNECT_S, self._timeout), pool=None)
        free = asyncio.Semaphore(self._at_once)

        async with httpx.AsyncClient(
            headers=headers, auth=auth, limits=limits, timeout=timeout
        ) as client:

            async def ask(i: int) -> float:
                async with free:
                    # In the loop it would hold up all that is under way, connections among it.
                    image = await loop.run_in_executor(encoders, _data_url, images[i])
                    return await self._ask(client, image, prompts[i], i)

            async with asyncio.TaskGroup() as group:
                waking = group.create_task(_wake())
                tasks = [group.create_task(ask(i)) for i in range(len(prompts))]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                waking.cancel()
        return [task.result() for task in tasks]

    async def _ask(self, client: "httpx.AsyncClient", image: str, prompt: str, first: int) -> float:
        """The score of one image. `first`: which server is asked first."""
        import httpx

        body = {
            "model": self._model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "text", "text": f"{QUESTIONS[self._score]}{prompt}]"},
                    ],
                }
            ],
            "max_tokens": _ANSWER_TOKENS,
        }
        failed = wrong = 0
        while True:
            server = _next(self._servers, first + failed + wrong)
            await server.rested()
            began = time.monotonic()
            failure: OSError
            try:
                async with asyncio.timeout(self._timeout):
                    reply = await _post(client, server.url, body | _drawing(wrong))
            except (TimeoutError, httpx.TimeoutException) as error:
                seconds = time.monotonic() - began
                said = f"{server.url}: no answer in {seconds:.3g} s ({type(error).__name__})"
                failure = TimeoutError(said)
                server.failed(began)
            except (httpx.TransportError, _UnusableError) as error:
                failure = ConnectionError(f"{server.url}: {type(error).__name__}: {error}")
                server.failed(began)
            else:
                if reply.status not in (408, 429) and reply.status < 500:
                    server.failures = 0
                    if reply.status != 200:
                        raise self._refused(server.url, reply, prompt)
                    answer = _content(reply)
                    if (value := _score(answer, _LABELS[self._score])) is not None:
                        return value
                    wrong += 1
                    if wrong == self._answers:
                        raise self._senseless(answer, prompt)
                    continue
                wanted = _retry_after(reply)
                asked = f" (it asks to wait {wanted:,.0f} s)" if wanted else ""
                failure = ConnectionError(f"{server.url}: {self._said(reply)}{asked}")
                server.failed(began, min(wanted, _LONGEST_WANTED_S))
            failed += 1
            if failed == self._tries:
                raise type(failure)(
                    f"no answer in {failed} tries; the last one: {failure}; see that the servers "
                    "in rewards.options.unifiedreward.urls are up"
                )

    def _senseless(self, answer: str, prompt: str) -> RepeatableError:
        place = "rewards.options.unifiedreward"
        return RepeatableError(
            f"for the prompt {prompt!r} the model {self._model} gives no number from 1 to 5 after "
            f"{_LABELS[self._score]!r} in all {self._answers} answers, the last one "
            f"{answer[:200]!r}; see that {place}.score, {self._score}, is one that this model was "
            f"trained for; if it is, a higher {place}.retries draws more answers, and the run "
            "stays the same"
        )

    def _said(self, reply: "_Reply") -> str:
        """Status and beginning of a reply, in one line; a key that it repeats is left out."""
        text = without_passwords(reply.text)
        secret = os.environ.get(self._key or self._login or "", "")
        for part in (secret, *(secret.split(":", 1) if self._login else [])):
            text = text.replace(part, "...") if len(part) > 3 else text
        return f"HTTP {reply.status} {one_line(text)[:200]}".strip()

    def _refused(self, url: str, reply: "_Reply", prompt: str) -> Exception:
        said, place = f"{url}: {self._said(reply)}", "rewards.options.unifiedreward"
        if reply.status in (401, 403):
            return ConfigError(
                f"{said}; set {place}.api_key_env to the name of an environment variable that "
                "holds a key of this server, or login_env to that of one with user:password"
            )
        if 300 <= reply.status < 400:
            target = one_line(without_passwords(reply.headers.get("Location", "nowhere")))[:200]
            return ConfigError(
                f"{said}: sends requests on to {target}; if that is the server's address, write "
                f"it in {place}.urls"
            )
        if reply.status == 404:
            return ConfigError(
                f"{said}; see that {place}.urls end as the server's API does, mostly /v1, and "
                f"that {place}.model, {self._model}, is a name it serves"
            )
        return RepeatableError(f"{said}, for the prompt {prompt!r}")


class _UnusableError(Exception):
    """A reply that is not read: too long, or packed though that was not asked for."""


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: "httpx.Headers"
    text: str


async def _post(client: "httpx.AsyncClient", url: str, body: dict[str, Any]) -> _Reply:
    """The reply, of which no more is held than an answer may have."""
    async with client.stream("POST", url, json=body) as reply:
        packed = reply.headers.get("Content-Encoding", "identity")
        if packed.lower() != "identity":
            raise _UnusableError(f"its answer is packed ({packed[:40]}), which was not asked for")
        content = bytearray()
        async for part in reply.aiter_raw():
            content += part
            if len(content) > _LONGEST_REPLY:
                raise _UnusableError(f"its answer is longer than {_LONGEST_REPLY:,} bytes")
        text = content.decode("utf-8", "replace")
        return _Reply(reply.status_code, reply.headers, text)


def _drawing(wrong: int) -> dict[str, float]:
    """How the answer after a number of wrong ones is drawn."""
    return {"temperature": 0.7, "seed": wrong} if wrong else {"temperature": 0}


async def _wake() -> None:
    """Lets Python run now and then, which is where `rewards.timeout` can end the call."""
    while True:
        await asyncio.sleep(0.2)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio says of errors that nobody waits for; nothing of the end of a call."""
    if not isinstance(context.get("exception"), SystemExit):
        loop.default_exception_handler(context)


class _Server:
    """A server's address, and how long it is left alone after a failure."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failures = 0
        self.rests_until = 0.0
        self._failed_at = 0.0

    async def rested(self) -> None:
        """Waits until it may be asked, a little longer at random: not all come back at once."""
        rest = self.rests_until - time.monotonic()
        if rest > 0:
            await asyncio.sleep(rest * random.uniform(1, 1.25))

    def failed(self, began: float, wanted: float = 0.0) -> None:
        """A request that was sent at `began` failed; the server may have asked for a rest."""
        if began >= self._failed_at:  # those sent before the last failure say nothing new
            self.failures += 1
        self._failed_at = time.monotonic()
        rest = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** (self.failures - 1))
        self.rests_until = max(self.rests_until, self._failed_at + max(rest, wanted))


def _next(servers: Sequence[_Server], turn: int) -> _Server:
    """The server whose turn it is among those that are not resting, or whose rest ends first."""
    now = time.monotonic()
    order = [servers[(turn + k) % len(servers)] for k in range(len(servers))]
    return min(order, key=lambda server: max(server.rests_until, now))


def _retry_after(reply: "_Reply") -> float:
    """Seconds that the server asks to wait, as a number or a date; 0 where it does not."""
    text = reply.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _content(reply: "_Reply") -> str:
    """The text of a chat completion; "" where the reply is none."""
    try:
        text = json.loads(reply.text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return text if isinstance(text, str) else ""


def _score(answer: str, label: str) -> float | None:
    """The number behind `label`; None where there is none, or two that differ, or one outside
    [1, 5]."""
    found = set(scores(answer, label))
    return value if len(found) == 1 and 1 <= (value := found.pop()) <= 5 else None


def scores(answer: str, label: str) -> Iterator[float]:
    """Every plain decimal number behind `label`; "4/5", "4.5.6" and "4e1" are none."""
    for match in re.finditer(rf"{re.escape(label)}[\s*]*(-?\d+(?:\.\d+)?)(?!\.?\w|\s*/)", answer):
        yield float(match[1])


def _bytes(image: "Tensor") -> "np.ndarray":
    """An image [3, H, W] in [0, 1] as [H, W, 3] with 8 bits per channel, on the CPU."""
    pixels: np.ndarray = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def _data_url(pixels: "np.ndarray") -> str:
    """An image [H, W, 3] as the data URL of a PNG, compressed as quickly as can be."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
