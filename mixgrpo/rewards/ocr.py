"""The reward `ocr`: whether an image shows the text that its prompt quotes, read by PP-OCRv4.

The score is Flow-GRPO's (arXiv:2505.05470; github.com/yifan123/flow_grpo): 1 - d / n, d the edit
distance between the text in the image and the n characters wanted, no more than n, and 0 where the
wanted text occurs in the one that was read. Case and spaces do not count. Flow-GRPO reads with
PaddleOCR's English model; this one with the Chinese and English one that rapidocr-onnxruntime
ships, so that nothing is downloaded, on the CPU.
"""

from typing import TYPE_CHECKING, Any

from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class OCR:
    """`threads`: those of the CPU that read; None: as many as torch uses."""

    name = "ocr"

    def __init__(self, *, threads: int | None = None) -> None:
        """ConfigError where the optional package is not installed."""
        import torch

        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise ConfigError(
                f"reward ocr: cannot import rapidocr-onnxruntime ({error}); get it by "
                "`pip install 'mixgrpo[ocr]'`, and where a .so file is missing by "
                "`apt-get install libgl1 libglib2.0-0`"
            ) from error
        # As Flow-GRPO asks PaddleOCR: text that stands upside down is not turned round.
        self._reader: Any = RapidOCR(
            use_cls=False, intra_op_num_threads=threads or torch.get_num_threads()
        )

    def check(self, prompts: list[str]) -> None:
        """ConfigError naming a prompt that quotes nothing."""
        for prompt in prompts:
            quoted(prompt)

    def score(self, images: "Tensor", prompts: list[str]) -> "Tensor":
        """Rewards [B] in [0, 1], of images [B, 3, H, W] in [0, 1]. ConfigError naming a prompt
        that quotes nothing."""
        import torch

        wanted = [quoted(prompt) for prompt in prompts]
        # The networks were trained on blue, green, red.
        pixels = (images.clamp(0, 1) * 255).round().byte().flip(1).permute(0, 2, 3, 1).cpu().numpy()
        read = [self._read(picture) for picture in pixels]
        return torch.tensor([likeness(r, w) for r, w in zip(read, wanted, strict=True)])

    def _read(self, pixels: Any) -> str:
        """The text in an image [H, W, 3] in BGR, line after line."""
        lines, _ = self._reader(pixels.copy())
        return "".join(text for _, text, _ in lines or [])


def quoted(prompt: str) -> str:
    """What stands between the first two double quotes of a prompt.

    ConfigError where there are no two, or nothing but spaces between them.
    """
    parts = prompt.split('"')
    if len(parts) < 3 or not _plain(parts[1]):
        raise ConfigError(
            f"reward ocr: the prompt {prompt!r} has no text in double quotes that the image should "
            'show; write it as in: a sign that reads "open"'
        )
    return parts[1]


def likeness(read: str, wanted: str) -> float:
    """1 - d / n of the text that was read and the one wanted, in [0, 1]."""
    read, wanted = _plain(read), _plain(wanted)
    if wanted in read:
        return 1.0
    return 1 - min(_edits(read, wanted), len(wanted)) / len(wanted)


def _plain(text: str) -> str:
    return text.replace(" ", "").lower()


def _edits(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
