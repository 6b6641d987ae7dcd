"""What pages of docs/ say of the code and of the log: the picture, the places of an op, the decisions."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import yaml
from einops import rearrange

import maekernels
from diffmavil.config import DiffusionConfig
from diffmavil.model import DiffMAViL
from diffmavil.model.decoder import ToDecode
from tests.model.small import SMALL

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"
PICTURE = ElementTree.parse(DOCS / "way-of-one-clip.svg").getroot()


def texts(kind: str) -> list[str]:
    return [text.text or "" for text in PICTURE.iter(f"{SVG}text") if text.get("class") == kind]


def test_every_module_of_the_picture_exists() -> None:
    homes = [home for text in texts("h") for home in text.split(", ")]
    assert len(homes) == 17
    for home in homes:
        op = home.removeprefix("maekernels.")
        assert (ROOT / "diffmavil" / home).is_file() or op in maekernels.__all__, home


def test_the_picture_can_be_read_on_a_phone_and_in_the_dark() -> None:
    assert (PICTURE.get("viewBox") or "").startswith("0 0 400 ")
    style = "".join(PICTURE.itertext())
    assert min(map(int, re.findall(r"font-size: (\d+)px", style))) >= 11
    assert "prefers-color-scheme: dark" in style


def test_shapes_of_the_picture_are_those_of_the_model() -> None:
    """Those of the video branch, with two views, of which a part is decoded."""
    config = replace(
        SMALL,
        views=2,
        decode_fraction=0.5,
        diffusion=DiffusionConfig(corruption="diffusion"),
        video_decoder=replace(SMALL.video_decoder, attention="cross"),
        audio_decoder=replace(SMALL.audio_decoder, attention="cross"),
    )
    model, b, k, ka = DiffMAViL(config), 3, 12, 9
    v, d = config.video, config.encoder.width
    video = torch.randint(256, (b, v.frames, v.size, v.size, 3), dtype=torch.uint8)
    spec = torch.randn(b, config.audio.frames, config.audio.mels)
    asked: dict[str, Any] = {"seed": 0, "offset": 0, "keep_video": k, "keep_audio": ka}
    draws = model.draw(video, spec, **asked)
    masks, (x_t, t), _ = draws.video[0]
    branch = model.video
    audio = model.audio.encode(spec, draws.audio[0].masks.keep)
    tokens = branch.encode(video, masks.keep)
    fused = torch.cat(model.fusion(audio, tokens), dim=1)
    keep, decode = (rearrange(ids, "b v k -> (b v) k") for ids in masks[:2])
    (predicted,) = branch.decoder([ToDecode(tokens, keep, decode, (x_t, t))])
    letters = {"B": b, "V": 2, "K": k, "Kv": k, "Ka": ka, "Q": decode.shape[1], "P": v.patch_dim, "D": d}

    def shape(text: str) -> tuple[int, ...]:
        (found,) = re.findall(r"\[(.*?)\]", text)
        return tuple(eval(size.replace("·", "*"), {}, letters) for size in found.split(","))

    keep_text, decode_text = next(text for text in texts("s") if text.startswith("keep")).split("decode")
    assert (shape(keep_text), shape(decode_text)) == (masks.keep.shape, masks.decode.shape)
    assert masks.keep.dtype == torch.int32
    for text, tensor in {
        "[B·V, K, P]": branch.patches(video, masks.keep),
        "x_t [B·V, Q, P]": x_t,
        "[B·V, 1 + K, D]": tokens,
        "[B·V, 2 + Ka + Kv, D]": fused,
        "pooled [B, V, D]": model.pooled(video, spec, **asked).video,
        "[B·V, Q, P]": predicted,
    }.items():
        assert text in texts("s")
        assert shape(text) == tensor.shape, text


def test_every_place_of_the_example_names_it() -> None:
    files = re.findall(r"^\| `(\S+)` \|", (DOCS / "adding-an-op.md").read_text(), re.MULTILINE)
    assert len(files) == 14
    for file in files:
        assert "scatter_tokens" in (ROOT / file).read_text(), file


def entries() -> dict[str, str]:
    """Anchor, as GitHub and the site make it of a heading -> what stands below it in the log."""
    _, *parts = re.split(r"^## ", (ROOT / "benchmarks" / "LOG.md").read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", part.partition("\n")[0].lower()).replace(" ", "-"): part for part in parts}


def test_decisions_say_what_the_log_says() -> None:
    rows = re.findall(r"^\|(.*)\[[^]]+\]\(\S+LOG\.md#(\S+)\) \|$", (DOCS / "decisions.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    log = entries()
    for row, anchor in rows:
        assert anchor in log
        for number in re.findall(r"(?<![\w@.-])\d[\d,]*(?:\.\d+)?(?![\w@])", row):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", log[anchor]), f"{number} of{row}"


def scores(of: str, setting: str, budget: float, key: str) -> str:
    """Of the study of the lean recipe, as the tables have it: mean and deviation of three seeds, or each score. "" for
    what was not run.
    """
    lines = map(json.loads, (ROOT / "benchmarks" / "results" / "quality-lean.jsonl").read_text().splitlines())
    same = [one for one in lines if (one["set"], one["setting"], one["budget"]) == (of, setting, budget)]
    found = [100 * one["scores"][key] for one in sorted(same, key=lambda one: one["seed"])]
    if len(found) < 3:
        return " and ".join(f"{score:.1f}" for score in found)
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"


def test_results_say_what_the_lines_say() -> None:
    """Of the recipe that is compared with MAViL: the table's cells, and the README's."""
    lean, half = "mavil-tiny-lean, twice the learning rate", ("mavil-tiny-lean, twice the learning rate", 0.5)
    rows = {
        "GRID words, fused": ("grid", "probe/fused"),
        "GRID words, audio": ("grid", "probe/audio"),
        "GRID words, video (lips)": ("grid", "probe/video"),
        "GRID, audio to video, recall@1 of 1,098": ("grid", "audio_to_video/recall@1"),
        "Free Spoken Digits": ("fsdd", "probe/audio"),
        "generated set, fused": ("synthetic", "probe/fused"),
        "ESC-10, five folds": ("esc10-folds", "probe/audio"),
        "ESC-10, fold 1": ("esc10", "probe/audio"),
    }
    page, readme = (DOCS / "results.md").read_text(), (ROOT / "README.md").read_text()
    for name, (of, key) in rows.items():
        (line,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", page, re.MULTILINE)
        whole = ("mavil-tiny-lean", 1.0) if of == "fsdd" else (lean, 1.0)
        *cells, _ = (cell.strip() for cell in line.split("|"))
        for cell, (setting, budget) in zip(cells, (("mavil-tiny", 1.0), half, whole), strict=True):
            known = scores(of, setting, budget, key)
            assert cell.startswith(known), f"{name}: {cell}"
            assert bool(cell) == bool(known), f"{name}: {cell}"
    (grid,) = re.findall(r"^\| GRID words, .* \|$", readme, re.MULTILINE)
    (esc,) = re.findall(r"^\| ESC-10, .* \|$", readme, re.MULTILINE)
    for line, of, key, cells in (
        (grid, "grid", "probe/fused", [("mavil-tiny", 1.0), (lean, 1.0), half]),
        (esc, "esc10-folds", "probe/audio", [("mavil-tiny", 1.0), half]),
    ):
        for setting, budget in cells:
            mean = scores(of, setting, budget, key).partition(" ±")[0]
            assert mean
            assert f"{mean} %" in line, f"{mean} in {line}"


def test_the_site_has_every_page() -> None:
    """In its navigation; docs/site/pages.py brings those from outside docs/."""
    nav = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    named = set(re.findall(r"'([\w/-]+\.md)'", nav))
    own = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    recipes = {f"recipes/{page.parent.name}.md" for page in (ROOT / "recipes").glob("*/README.md")}
    assert named >= own | recipes
