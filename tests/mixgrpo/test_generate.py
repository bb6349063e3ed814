"""Pure and hybrid images: which model takes which step, by which solver, from which noise."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixgrpo import cli, train
from mixgrpo import generate as command
from mixgrpo.errors import ConfigError
from mixgrpo.evaluation.contact_sheet import Column, contact_sheet, png
from mixgrpo.evaluation.held_out import check_readable, choose, evaluation_noise
from mixgrpo.generate import generate
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.models.protocol import Conditioning
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import Order, Sampling, Variant, draw, sample
from mixgrpo.sampling.rollout import sample_ode
from tests.mixgrpo import oracle, toy
from tests.mixgrpo.toy import PROMPTS, ToyPolicy

pytestmark = pytest.mark.usefixtures("toy_site")

TRAINED, BASE = ToyPolicy(1, torch.float64), ToyPolicy(2, torch.float64)
NOISE = torch.randn(3, 3, 2, 2, generator=torch.manual_seed(0), dtype=torch.float64)
TEXT = TRAINED.encode(PROMPTS[:3])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A finished run that has moved far enough for pictures to show it."""
    folder = tmp_path_factory.mktemp("runs") / "toy-run"
    config = toy.config(output={"checkpoints_kept": 9, "samples": 2}, optimizer={"lr": 0.05})
    assert train.run(config, folder) == "finished"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- which model, which solver -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_mix", "steps", "expected"),
    [
        (0.0, 5, "bbbbb"),
        (1.0, 5, "ttttt"),
        (0.4, 5, "ttbbb"),
        (0.8, 25, "t" * 20 + "b" * 5),
        (0.28, 25, "t" * 7 + "b" * 18),  # 0.28 * 25 is 7.000000000000001
        (0.05, 5, "bbbbb"),
    ],
)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_first_steps_are_the_trained_models(
    p_mix: float, steps: int, expected: str, order: Order
) -> None:
    seen = ""

    def noting(letter: str, policy: ToyPolicy) -> Callable[..., Tensor]:
        def velocity(x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
            nonlocal seen
            seen += letter
            return policy.velocity(x, sigma, conditioning)

        return velocity

    sampling = Sampling(steps, 3.0, p_mix, order)
    sample(noting("t", TRAINED), noting("b", BASE), sampling, TEXT, NOISE)
    assert seen == expected
    assert sampling.trained_steps == expected.count("t")


def test_the_ends_of_p_mix_are_the_two_models_to_the_bit() -> None:
    sigmas = sigma_schedule(5, 2.0, torch.float64)
    for p_mix, policy in ((1.0, TRAINED), (0.0, BASE)):
        found = sample(TRAINED.velocity, BASE.velocity, Sampling(5, 2.0, p_mix), TEXT, NOISE)
        assert torch.equal(found, sample_ode(policy.velocity, sigmas, TEXT, NOISE))


@pytest.mark.parametrize(
    ("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
)
@pytest.mark.parametrize(("p_mix", "switch"), [(0.0, 0), (0.35, 7), (1.0, 20)])
def test_trajectories_are_the_formulas(
    order: Order, variant: Variant, p_mix: float, switch: int
) -> None:
    """The solver begins anew where the base model takes over, and is Euler on the last step."""
    steps = 20
    sampling = Sampling(steps, 3.0, p_mix, order, variant)
    found = sample(TRAINED.velocity, BASE.velocity, sampling, TEXT, NOISE)
    t = np.linspace(1, 0, steps + 1)
    sigmas = [float(s) for s in 3 * t / (1 + 2 * t)]
    y = NOISE.numpy()
    seen: list[oracle.Array] = []
    for i in range(steps):
        policy = TRAINED if i < switch else BASE
        with torch.no_grad():
            v = policy.velocity(torch.from_numpy(y), sigmas[i], TEXT).numpy()
        if i == switch:
            seen = []
        seen.insert(0, y - sigmas[i] * v)
        used = 1 if i == steps - 1 else min(order, len(seen))
        y = oracle.dpm(used, variant, y, seen, [sigmas[i - k] for k in range(used)], sigmas[i + 1])
    np.testing.assert_allclose(found.numpy(), y, atol=1e-11)


def test_impossible_ways_to_sample_are_refused() -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="--p-mix"):
            Sampling(5, 3.0, wrong)
    for shift in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="shift"):
            Sampling(5, shift)
    with pytest.raises(ConfigError, match="steps 0"):
        Sampling(0, 3.0)


def test_labels_tell_pure_from_hybrid_also_where_they_round_to_the_same() -> None:
    labels = [Sampling(5, 3.0, p).label for p in (0.0, 0.8, 0.99, 1.0)]
    assert labels == ["base model", "p_mix 80 %", "p_mix 99 %", "pure"]
    assert "the first 5 of 5 steps" in Sampling(5, 3.0, 0.99).in_words


# --- which noise ---------------------------------------------------------------------------------


def test_an_image_depends_on_its_seed_prompt_and_index_alone(run: Path) -> None:
    loaded, sampling = load_run(run), Sampling(5, 3.0, 0.6)
    of = {p: i for i, p in enumerate(PROMPTS[:4])}
    many = generate(loaded, sampling, PROMPTS[:4], 7, 3)
    assert many.shape == (4, 3, 3, 2, 2)
    for prompts, images in ((PROMPTS[3::-1], 3), (PROMPTS[2:3], 1), ([PROMPTS[1], PROMPTS[3]], 2)):
        again = generate(loaded, sampling, prompts, 7, images)
        for k, prompt in enumerate(prompts):
            torch.testing.assert_close(
                again[k], many[of[prompt], :images], rtol=0, atol=1e-6, msg=prompt
            )
    pairs = [many[p, i] for p in range(4) for i in range(3)]
    pairs.append(generate(loaded, sampling, PROMPTS[:1], 8, 1)[0, 0])
    for i, one in enumerate(pairs):
        assert all(float((one - other).abs().max()) > 0.01 for other in pairs[:i])


def test_batches_change_no_image(run: Path) -> None:
    loaded = load_run(run)
    noise = evaluation_noise(0, PROMPTS[:5], 1, (3, 2, 2))
    whole, parts = (
        draw(
            loaded.policy,
            loaded.velocity,
            loaded.reference,
            Sampling(4, 3.0, 0.5),
            PROMPTS[:5],
            noise,
            batch,
        )
        for batch in (128, 2)
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_the_runs_own_evaluation_pictures_come_again_byte_for_byte(
    run: Path, tmp_path: Path
) -> None:
    listing = json.loads((run / "samples" / "prompts.json").read_text())
    command.main(run, checkpoint=[2, 4], out=tmp_path, images=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    made = {(i["checkpoint"], i["prompt"]): i["file"] for i in manifest["images"] if not i["index"]}
    kept = [(it, k, p) for it in (0, 2, 4) for k, p in enumerate(listing)]
    assert len(kept) == 6
    for iteration, k, prompt in kept:
        expected = Image.open(run / "samples" / f"{iteration:06d}" / f"{k}.png")
        found = Image.open(tmp_path / made[iteration, prompt])
        assert found.tobytes() == expected.tobytes()
    pictures = [(tmp_path / made[i, listing[0]]).read_bytes() for i in (0, 2, 4)]
    assert len(set(pictures)) == 3  # else the comparison would say nothing
    both = generate(load_run(run), Sampling(5, 3.0), listing, 3, 2)
    for image in manifest["images"]:
        if image["checkpoint"] == 4:
            pixels = both[listing.index(image["prompt"]), image["index"]]
            assert (tmp_path / image["file"]).read_bytes() == png(pixels)


# --- files ---------------------------------------------------------------------------------------


def test_the_command_leaves_pictures_a_manifest_and_a_sheet(
    run: Path, tmp_path: Path, toy_site: Path
) -> None:
    before = contents(run)
    (tmp_path / "prompts.txt").write_text("\ufeffprompt 5\n\n  prompt 6 \r\n", encoding="utf-8")
    words = ["--prompt", "prompt 2", "--prompts", "prompts.txt", "--p-mix", "0.8", "--steps", "6"]
    words += ["--checkpoint", "4", "--checkpoint", "2", "--seed", "3", "--seed", "11"]
    words += ["--order", "2", "--variant", "heun"]
    done = subprocess.run(
        [sys.executable, "-m", "mixgrpo.generate", str(run), *words],
        cwd=tmp_path,
        env=toy.environment(toy_site),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/generated/toy-run/sheet.png\n"
    assert contents(run) == before
    out = tmp_path / "generated" / "toy-run"
    manifest = json.loads((out / "manifest.json").read_text())
    images = manifest["images"]
    assert {i["file"] for i in images} == {p.name for p in out.glob("prompt-?_*.png")}
    assert len(images) == 3 * 3 * 2
    found = {(i["prompt"], i["checkpoint"], i["seed"], i["p_mix"]) for i in images}
    wanted = ["prompt 2", "prompt 5", "prompt 6"]
    assert found == {
        (p, it, s, 0.8 if it else 0.0) for p in wanted for it in (0, 2, 4) for s in (3, 11)
    }
    one = next(i for i in images if (i["prompt"], i["checkpoint"], i["seed"]) == (wanted[1], 4, 11))
    assert re.fullmatch(
        r"prompt-5_[0-9a-f]{8}_seed-11_image-0_checkpoint-000004_p-mix-0\.8\.png", one["file"]
    )
    expected = {"index": 0, "steps": 6, "trained_steps": 5, "shift": 3.0, "order": 2}
    assert one.items() >= {**expected, "variant": "heun"}.items()
    pixels = generate(load_run(run), Sampling(6, 3.0, 0.8, 2, "heun"), [wanted[1]], 11, 1)
    assert (out / one["file"]).read_bytes() == png(pixels[0, 0])
    Image.open(out / "sheet.png").verify()
    assert not list(out.glob(".*"))


def test_the_base_model_is_in_its_column_whatever_p_mix(run: Path, tmp_path: Path) -> None:
    command.main(run, prompt=["prompt 1"], checkpoint=[4, 2], out=tmp_path, p_mix=0.5)
    base = generate(load_run(run, 0), Sampling(5, 3.0), ["prompt 1"], 3, 1)[0, 0]
    (file,) = tmp_path.glob("prompt-1_*_seed-3_image-0_checkpoint-000000_p-mix-0.png")
    assert file.read_bytes() == png(base)


def test_another_prompt_or_solver_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        {"prompt": ["prompt 1"]},
        {"prompt": ["prompt 2"]},
        {"prompt": ["prompt 2"], "steps": 3},
        {"prompt": ["prompt 2"], "order": 2},
        {"prompt": ["prompt 2"], "shift": 1.0},
    ]
    for number, way in enumerate(ways, 1):
        before = contents(tmp_path)
        command.main(run, out=tmp_path, **way)
        listed = json.loads((tmp_path / "manifest.json").read_text())["images"]
        assert len(listed) == number
        assert all((tmp_path / image["file"]).exists() for image in listed)
        images = {k for k in before if "_seed-" in str(k)}
        assert all(contents(tmp_path)[k] == before[k] for k in images)


def test_columns_are_checkpoints_with_their_seeds_and_say_what_is_hybrid(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Column] = []
    texts: list[str] = []

    def noting(title: list[str], prompts: list[str], columns: list[Column]) -> bytes:
        shown[:], texts[:] = columns, [*title, *prompts]
        return contact_sheet(title, prompts, columns)

    monkeypatch.setattr(command, "contact_sheet", noting)
    command.main(run, checkpoint=[4, 2], seed=[5, 3], images=2, p_mix=0.8, out=tmp_path)
    groups = ["base model", "iteration 2, p_mix 80 %", "iteration 4, p_mix 80 %"]
    labels = [f"seed {s}, image {i}" for s in (5, 3) for i in (0, 1)]
    assert [(c.group, c.label) for c in shown] == [(g, k) for g in groups for k in labels]
    assert texts[1].startswith("p_mix 80 %: the first 4 of 5 steps with the trained model")
    assert texts[2:] == PROMPTS[7:]
    expected = generate(load_run(run, 2), Sampling(5, 3.0, 0.8), PROMPTS[7:], 3, 2)
    assert torch.equal(shown[4 + 3].images, expected[:, 1])
    command.main(run, out=tmp_path)
    assert [(c.group, c.label) for c in shown] == [("iteration 4, pure", "seed 3")]


def test_the_same_call_gives_the_same_bytes_and_others_add_to_it(run: Path, tmp_path: Path) -> None:
    command.main(run, prompt=["prompt 1"], out=tmp_path)
    first = contents(tmp_path)
    command.main(run, prompt=["prompt 1"], out=tmp_path)
    assert contents(tmp_path) == first
    command.main(run, prompt=["prompt 1"], out=tmp_path, p_mix=0.4, sheet=tmp_path / "b" / "s.png")
    second = contents(tmp_path)
    assert second.items() >= {k: v for k, v in first.items() if k != "manifest.json"}.items()
    manifest = json.loads(second["manifest.json"])
    assert [i["p_mix"] for i in manifest["images"]] == [0.4, 1.0]


def test_a_run_that_is_not_finished_shows_its_newest_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    lines = folder / "metrics.jsonl"
    stop = lambda: lines.exists() and len(lines.read_text().splitlines()) == 2  # noqa: E731
    assert train.run(toy.config(), folder, stop) == "stopped"
    command.main(folder, out=tmp_path / "images")
    images = json.loads((tmp_path / "images" / "manifest.json").read_text())["images"]
    assert {i["checkpoint"] for i in images} == {2}
    assert [i["prompt"] for i in images] == choose(PROMPTS[7:], 8)


# --- contact sheet -------------------------------------------------------------------------------


def colours(count: int) -> list[tuple[int, int, int]]:
    return [(255 - 20 * i, 60 + 30 * (i % 6), 10 * i) for i in range(count)]


def sheet_of(prompts: list[str], groups: list[str], size: int = 2) -> Any:
    """A sheet of single-coloured images, as an array."""
    palette = torch.tensor(colours(len(prompts) * len(groups))) / 255
    images = palette.reshape(len(groups), len(prompts), 3, 1, 1).expand(-1, -1, -1, size, size)
    columns = [Column(g, f"seed {i}", images[i]) for i, g in enumerate(groups)]
    return np.array(Image.open(BytesIO(contact_sheet(["a title"], prompts, columns))))


@pytest.mark.parametrize(("size", "shown"), [(2, 96), (16, 96), (40, 80), (128, 128), (512, 256)])
def test_every_image_is_whole_and_in_its_row_and_column(size: int, shown: int) -> None:
    long = "a very long prompt " * 20 + "x" * 90
    pixels = sheet_of(["short", long, "short"], ["a", "a", "b"], size)
    boxes = []
    for colour in colours(9):
        ys, xs = np.nonzero((pixels == colour).all(-1))
        # Nothing is drawn over it: no text, no neighbour.
        assert len(ys) == shown * shown
        box = (int(xs.min()), int(ys.min()))
        assert (xs.max() - box[0] + 1, ys.max() - box[1] + 1) == (shown, shown)
        boxes.append(box)
    columns = [{x for x, _ in boxes[3 * k : 3 * k + 3]} for k in range(3)]
    rows = [{boxes[3 * k + r][1] for k in range(3)} for r in range(3)]
    assert all(len(same) == 1 for same in (*columns, *rows))
    x, y = ([next(iter(same)) for same in of] for of in (columns, rows))
    assert x[2] - x[1] > x[1] - x[0] > shown  # groups stand apart
    assert y[2] - y[1] > y[1] - y[0] or shown == 256  # the long text has room
    # Text stays in the column of prompts, and the sheet's rim is free.
    assert (pixels[y[0] :, 236 : x[0]] == 255).all()
    assert (pixels[:, -16:] == 255).all()
    assert (pixels[-16:] == 255).all()


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    image = torch.rand(3, 16, 16, generator=torch.manual_seed(1))
    sheet = Image.open(BytesIO(contact_sheet([], ["p"], [Column("a", "b", image[None])])))
    left = sheet.width - 16 - 96
    top = sheet.height - 16 - 96
    cell = np.array(sheet)[top : top + 96, left : left + 96]
    expected = np.array(Image.open(BytesIO(png(image)))).repeat(6, 0).repeat(6, 1)
    assert (cell == expected).all()


def test_texts_change_the_sheet_and_the_same_texts_do_not() -> None:
    one, again = sheet_of(["p"], ["pure"]), sheet_of(["p"], ["pure"])
    assert (one == again).all()
    other = sheet_of(["p"], ["p_mix 80 %"])
    assert one.shape != other.shape or (one != other).any()


# --- misuse --------------------------------------------------------------------------------------


def error_of(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["generate", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.run(command.main)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--images", "1000000000"], "--images"),
        (["--images", "10000"], "10000 images of 3 prompts, for 6 checkpoints and seeds, are more"),
        (["--seed", "99999999999999999999", "--parquet", "scores.parquet"], "--seed"),
    ],
)
def test_more_images_than_can_be_held_are_refused_before_any_is_made(
    words: list[str],
    part: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [word for prompt in PROMPTS[:3] for word in ("--prompt", prompt)]
    many = ["--checkpoint", "0", "--checkpoint", "2", "--seed", "1", "--seed", "2", "--seed", "3"]
    assert part in error_of([str(run), *prompts, *many, *words], monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--p-mix", "1.5"], "--p-mix 1.5"),
        (["--p-mix", "nan"], "--p-mix nan"),
        (["--prompts", "no-such.txt"], "no-such.txt: no such file"),
        (["--prompts", "blank.txt"], "has no prompt"),
        (["--prompts", "bytes.txt"], "is not UTF-8 text"),
        (["--prompt", " "], "is empty"),
        (["--out", "blank.txt"], "blank.txt is not a folder"),
        (["--sheet", "."], "is a folder"),
        (["--checkpoint", "4", "--checkpoint", "9"], "no checkpoint of iteration 9; it has: 1, 2"),
        (["--order", "4"], "--order"),
        (["--variant", "heun"], "--order 2"),
        (["--order", "2", "--variant", "euler"], "midpoint or heun"),
        (["--steps", "0"], "--steps"),
        (["--shift", "0"], "shift 0"),
        (["--images", "0"], "--images"),
    ],
)
def test_misuse_is_one_line_and_leaves_nothing(
    words: list[str],
    part: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("\n  \n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    assert part in error_of([str(run), *words], monkeypatch, capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blank.txt", "bytes.txt"]


def test_what_is_no_place_for_images_is_refused(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inside = error_of([str(run), "--out", str(run / "images")], monkeypatch, capsys)
    assert "which is only read" in inside
    assert "holds no run" in error_of([str(tmp_path / "nothing")], monkeypatch, capsys)
    (tmp_path / "manifest.json").write_text('{"run": "/elsewhere", "images": []}')
    assert "another run" in error_of([str(run), "--out", str(tmp_path)], monkeypatch, capsys)
    (tmp_path / "manifest.json").write_text("[]")
    assert "lists no images" in error_of([str(run), "--out", str(tmp_path)], monkeypatch, capsys)


def test_prompts_are_checked_after_all_are_encoded_together(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, list[str]]] = []
    loaded = load_run(run)
    encode = ToyPolicy.encode

    def noting(self: ToyPolicy, prompts: list[str]) -> Conditioning:
        called.append(("encode", prompts))
        return encode(self, prompts)

    def prepare(_self: ToyPolicy, prompts: list[str], *_: object) -> None:
        called.append(("prepare", prompts))

    monkeypatch.setattr(ToyPolicy, "encode", noting)
    monkeypatch.setattr(ToyPolicy, "prepare", prepare, raising=False)
    monkeypatch.setattr("mixgrpo.evaluation.held_out.images_at_once", lambda _: 2)
    check_readable(loaded, PROMPTS[:3])
    expected = [("prepare", PROMPTS[:3]), ("encode", PROMPTS[:2]), ("encode", PROMPTS[2:3])]
    assert called == expected


def test_a_prompt_that_the_model_cannot_read_is_named_before_any_image(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def encode(self: ToyPolicy, prompts: list[str]) -> Conditioning:
        raise ValueError(f"{prompts[-1]!r} is not a prompt of the toy")

    monkeypatch.setattr(ToyPolicy, "encode", encode)
    out = tmp_path / "out"
    text = error_of([str(run), "--prompt", "a dog", "--out", str(out)], monkeypatch, capsys)
    assert "'a dog' is not a prompt of the toy" in text
    assert not out.exists()


def test_a_sheet_goes_through_a_link_to_a_device(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sheet").symlink_to(os.devnull)
    command.main(run, prompt=["prompt 1"], out=tmp_path / "images", sheet=tmp_path / "sheet")
    assert (tmp_path / "sheet").is_symlink()
    assert Path(os.devnull).is_char_device()
    assert capsys.readouterr().out == ""
