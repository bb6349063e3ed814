"""Prompts are encoded once, by encoders that are loaded and freed; truncation is reported."""

import fnmatch
import gc
import shutil
import warnings
import weakref
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from mixgrpo.errors import ConfigError
from mixgrpo.models import text
from mixgrpo.models.flux import FluxPolicy
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.sd3 import SD3Policy
from mixgrpo.models.text import PromptEncoder
from mixgrpo.settings.config import ComputeConfig, ModelConfig
from tests.mixgrpo.models.tiny import write_flux, write_sd3

PROMPTS = ["a red cross", "a blue square", "a tree", "two boats", "rain"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("flux"))


def encoder(folder: Path, kept: Path | None, **model: Any) -> PromptEncoder:
    settings: dict[str, Any] = {"name": "flux", "checkpoint": str(folder), "text_tokens": 32}
    return FluxPolicy.text_only(ModelConfig(**{**settings, **model}), ComputeConfig(), "cpu", kept)


def test_embeddings_are_those_of_the_pipeline(flux: Path) -> None:
    from diffusers import FluxPipeline

    encoded = encoder(flux, None).encode(PROMPTS)
    pipeline = FluxPipeline.from_pretrained(flux)
    states, pooled, _ = pipeline.encode_prompt(PROMPTS, None, max_sequence_length=32)
    torch.testing.assert_close(encoded["text"], states)
    torch.testing.assert_close(encoded["pooled"], pooled)


def test_a_repeated_prompt_has_a_row_each_time_in_the_order_asked_for(flux: Path) -> None:
    prompt_encoder = encoder(flux, None)
    encoded = prompt_encoder.encode(["rain", "a tree", "rain"])
    each = prompt_encoder.encode(["a tree", "rain"])
    for name in ("text", "pooled"):
        assert torch.equal(encoded[name], each[name][[1, 0, 1]])


def test_kept_prompts_need_no_encoders(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    first = encoder(flux, tmp_path)
    first.prepare([*PROMPTS, PROMPTS[0]], messages.append)
    assert messages == ["encoded 5 of 5 prompts"]
    fresh = encoder(flux, None).encode(PROMPTS)

    def none_left(_: PromptEncoder) -> None:
        raise AssertionError("the encoders are loaded")

    monkeypatch.setattr(PromptEncoder, "_encoders", none_left)
    again = encoder(flux, tmp_path)
    again.prepare(PROMPTS, messages.append)
    assert len(messages) == 1
    for name, value in again.encode(PROMPTS).items():
        assert torch.equal(value, fresh[name].bfloat16())
    with (
        pytest.raises(AssertionError, match="are loaded"),
        pytest.warns(UserWarning, match="'another', so that text encoders are loaded again"),
    ):
        again.encode(["another"])
    with pytest.raises(AssertionError, match="are loaded"):  # other tokens, other embeddings
        encoder(flux, tmp_path, text_tokens=31).encode(PROMPTS)


def test_shares_are_all_there_is_whoever_comes_first(flux: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    encoder(flux, tmp_path).prepare(PROMPTS, messages.append, (1, 2))
    encoder(flux, tmp_path).prepare(PROMPTS, messages.append, (0, 2))
    assert messages == ["encoded 2 of 2 prompts", "encoded 3 of 3 prompts"]


def test_batches_give_what_each_prompt_gives(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoder(flux, None).encode(PROMPTS)
    monkeypatch.setattr(text, "BATCH", 2)
    monkeypatch.setattr(text, "PER_FILE", 3)
    for name, value in encoder(flux, None).encode(PROMPTS).items():
        torch.testing.assert_close(value, whole[name])


def test_encoders_are_freed(flux: Path) -> None:
    from transformers import CLIPTextModel, T5EncoderModel

    encoder(flux, None).encode(PROMPTS)
    gc.collect()
    kinds = (CLIPTextModel, T5EncoderModel)
    assert not [type(thing) for thing in gc.get_objects() if type(thing) in kinds]


def test_encoders_are_gone_when_the_devices_memory_is_given_back(
    flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real = Pipeline.load

    def load(self: Pipeline, part: str, dtype: torch.dtype | None = None) -> Any:
        loaded = real(self, part, dtype)
        if dtype is not None:
            models.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: alive.append(sum(m() is not None for m in models))
    )
    encoder(flux, None).encode(PROMPTS)
    assert len(models) == 2
    assert alive == [0]


def test_what_is_loaded_again_after_preparation_is_said(flux: Path, tmp_path: Path) -> None:
    prompt_encoder = encoder(flux, tmp_path / "kept")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_encoder.encode(PROMPTS[:1])  # nothing was prepared: a script may do so
        prompt_encoder.prepare(PROMPTS[:3], print)
        prompt_encoder.encode(PROMPTS[:3])
    with pytest.warns(UserWarning, match="prompts.embeddings") as caught:
        prompt_encoder.encode(PROMPTS)
    assert str(tmp_path / "kept") in str(caught[0].message)
    assert "2 prompts" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_encoder.encode(PROMPTS)


def test_a_share_that_another_machine_kept_to_itself_is_said_and_lacking(
    flux: Path, tmp_path: Path
) -> None:
    here, there = encoder(flux, tmp_path / "here"), encoder(flux, tmp_path / "there")
    here.prepare(PROMPTS, print, (0, 2))
    there.prepare(PROMPTS, print, (1, 2))
    assert here.missing([*PROMPTS, *PROMPTS]) == PROMPTS[1::2]
    assert there.missing(PROMPTS) == PROMPTS[0::2]
    assert here.missing([]) == []
    with pytest.warns(UserWarning, match="prompts.embeddings"):
        here.prepare(PROMPTS, print)  # as before an evaluation
    assert here.missing(PROMPTS) == []
    assert encoder(flux, None).missing(PROMPTS) == []  # nothing could be kept for later


def test_the_text_side_needs_of_the_other_parts_the_transformers_config_alone(
    flux: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(flux, bare)
    for part in ("vae", "scheduler", "transformer"):
        shutil.rmtree(bare / part)
    with pytest.raises(ConfigError, match=r"transformer/config\.json"):
        encoder(bare, None)
    (bare / "transformer").mkdir()
    shutil.copy(flux / "transformer" / "config.json", bare / "transformer")
    whole = encoder(flux, None)
    assert encoder(bare, None).identity == whole.identity
    encoded = encoder(bare, None).encode(PROMPTS[:2])
    assert torch.equal(encoded["text"], whole.encode(PROMPTS[:2])["text"])


def test_of_a_repository_the_text_side_gets_no_weights_of_other_parts(
    flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(file.relative_to(flux)) for file in flux.rglob("*") if file.is_file()]
    got: set[str] = set()

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("owner/flux", "main")
        got.update(f for f in files if any(fnmatch.fnmatch(f, p) for p in allow_patterns))
        return str(flux)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = ModelConfig(name="flux", checkpoint="owner/flux", revision="main")
    FluxPolicy.text_only(model, ComputeConfig())
    others = {"model_index.json", "transformer/config.json"}
    assert {f for f in got if not f.startswith(("text_encoder", "tokenizer"))} == others
    assert "text_encoder_2/model.safetensors" in got


def test_the_identity_is_what_is_in_the_folders_and_not_where_they_are(
    flux: Path, tmp_path: Path
) -> None:
    elsewhere = write_flux(tmp_path / "elsewhere")
    identity = encoder(flux, None).identity
    assert encoder(elsewhere, None).identity == identity
    assert encoder(flux, None, text_tokens=33).identity != identity
    weights = elsewhere / "text_encoder_2" / "model.safetensors"
    content = weights.read_bytes()
    half = len(content) // 2
    weights.write_bytes(content[:half] + bytes(byte ^ 1 for byte in content[half:]))
    assert encoder(elsewhere, None).identity != identity


def test_prompts_that_are_cut_are_counted_for_each_encoder(flux: Path) -> None:
    # Every letter is a token; T5 has one more for the space before a word, and both have an end.
    long, middle, short = "x" * 90, "x" * 60, "x" * 10
    with pytest.warns(UserWarning, match="prompts encoded now") as caught:
        encoder(flux, None).encode([long, middle, short])
    (message,) = [str(w.message) for w in caught if "encoded now" in str(w.message)]
    assert message.startswith(
        "of 3 prompts encoded now, CLIP cuts 1 at 77 tokens; T5 cuts 2 at 32 tokens"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(flux, None).encode(["x" * 30])  # 32 tokens of T5 exactly


def test_an_empty_list_of_prompts_is_refused(flux: Path, tmp_path: Path) -> None:
    for prompt_encoder in (encoder(flux, None), encoder(flux, tmp_path)):
        with pytest.raises(ConfigError, match="there are no prompts"):
            prompt_encoder.encode([])
        with pytest.raises(ConfigError, match="there are no prompts"):
            prompt_encoder.prepare([], print)


def test_with_guidance_the_empty_prompt_is_kept_too(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "sd3")
    model = ModelConfig(name="sd3", checkpoint=str(folder), text_tokens=16, cfg=2.0)
    prompt_encoder = SD3Policy.text_only(model, ComputeConfig(), "cpu", tmp_path / "kept")
    messages: list[str] = []
    prompt_encoder.prepare(PROMPTS, messages.append)
    assert messages == ["encoded 6 of 6 prompts"]
    rows = prompt_encoder.encode(PROMPTS[:2])
    empty = prompt_encoder.encode([""])
    assert torch.equal(rows["negative_pooled"][1], empty["pooled"][0])
    assert rows["negative_text"].shape == rows["text"].shape


def test_ahead_of_training_the_negative_prompt_is_encoded_whatever_the_guidance(
    tmp_path: Path,
) -> None:
    folder = write_sd3(tmp_path / "sd3")
    plain = ModelConfig(name="sd3", checkpoint=str(folder), text_tokens=16)
    guided = plain.model_copy(update={"cfg": 2.0})
    trained = SD3Policy.load(guided, ComputeConfig(), "cpu", tmp_path / "kept")
    assert trained.unprepared(PROMPTS) == [*PROMPTS, ""]
    SD3Policy.text_only(plain, ComputeConfig(), "cpu", tmp_path / "kept").prepare(PROMPTS, print)
    assert trained.unprepared(PROMPTS) == []
    unguided = SD3Policy.load(plain, ComputeConfig(), "cpu", tmp_path / "kept")
    assert set(unguided.encode(PROMPTS)) == {"text", "pooled"}
