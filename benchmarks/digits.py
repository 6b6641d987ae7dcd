"""The Free Spoken Digit Dataset: reading it, pretraining one modality on it, and a linear probe of what was learnt."""

from __future__ import annotations

import io
import tarfile
import time
import wave
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor, nn

from diffmavil.config import AudioConfig, Config
from diffmavil.data.audio import log_mel
from diffmavil.data.stream import ClipStream
from diffmavil.evaluation.probe import fit_probe
from diffmavil.model import DiffMAViL
from diffmavil.model.branch import Branch
from diffmavil.model.embed import all_ids
from diffmavil.model.flops import forward_flops, meta_model
from diffmavil.training.optim import learning_rate, parameter_groups
from diffmavil.training.planner import counts_at
from diffmavil.training.precision import use_bf16

AUDIO = AudioConfig(frames=96, mels=64, patch=(8, 16))
"""Just under a second; digits are shorter but for a few, which are cut."""
HELD_OUT = 5
BATCH = 64
_LR = 1e-3


@dataclass(frozen=True)
class Digits:
    """Normalised log-mel `[N, F, M]` with the statistics of the training recordings, and digits `[N]`."""

    train: Tensor
    train_digit: Tensor
    held_out: Tensor
    held_out_digit: Tensor


def read_digits(path: Path, recordings: int | None = None) -> Digits:
    """The archive's `recordings/DIGIT_SPEAKER_NUMBER.wav`, mono, 16 bit, 8 kHz; numbers 0 to 4 are held out.

    Raises:
        ValueError: no such recordings in it.
    """
    found: dict[bool, list[tuple[str, Tensor, int]]] = defaultdict(list)
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).stem.split("_")
            if not member.isfile() or Path(member.name).suffix != ".wav" or len(parts) != 3:
                continue
            number, file = int(parts[2]), archive.extractfile(member)
            if file is not None and (recordings is None or number < recordings):
                found[number < HELD_OUT].append((member.name, _sound(file.read()), int(parts[0])))
    if not found[True] or not found[False]:
        raise ValueError(
            f"{path}: must hold recordings/DIGIT_SPEAKER_NUMBER.wav with numbers below and above {HELD_OUT}"
        )
    sets = {}
    for held_out, clips in found.items():
        clips.sort(key=lambda clip: clip[0])
        sets[held_out] = (_spectra([sound for _, sound, _ in clips]), torch.tensor([digit for *_, digit in clips]))
    values = torch.cat([spec.flatten() for spec in sets[False][0]])
    mean, std = values.mean(), values.std()
    whole = {
        key: torch.stack([_padded((spec - mean) / (2 * std)) for spec in specs]) for key, (specs, _) in sets.items()
    }
    return Digits(whole[False], sets[False][1], whole[True], sets[True][1])


def _sound(data: bytes) -> Tensor:
    """float32 `[S]` at 16 kHz: the spectrum of the 8 kHz recording, with nothing above 4 kHz."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (8000, 1, 2):
            raise ValueError(f"a recording of {file.getparams()}: must be mono, 16 bit, 8000 Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 2**15
    sound = torch.from_numpy(samples)
    return torch.fft.irfft(torch.fft.rfft(sound), n=2 * len(sound)) * 2


def _spectra(sounds: list[Tensor]) -> list[Tensor]:
    """Log-mel `[f, M]` of each, at most `AUDIO.frames` long."""
    window = AUDIO.sample_rate // 40
    padded = (torch.nn.functional.pad(s, (0, max(0, window - len(s)))) for s in sounds)
    return [log_mel(s[None], AUDIO.mels)[0, : AUDIO.frames] for s in padded]


def _padded(spec: Tensor) -> Tensor:
    """Zeros, the mean of the set, after the end, as in training on clips."""
    return torch.nn.functional.pad(spec, (0, 0, 0, AUDIO.frames - len(spec)))


def pretrain_and_probe(config: Config, digits: Digits, *, samples: int, seed: int) -> dict[str, Any]:
    """The audio branch of `config`, trained on reconstruction alone; its probe before and after, and CPU seconds."""
    audio = replace(AUDIO, mean=0.0, std=1.0)
    config = replace(config, model=replace(config.model, audio=audio, views=1, fusion_depth=0))
    torch.manual_seed(seed)
    branch = DiffMAViL(config.model).audio
    untrained = _probe(branch, digits, seed)
    groups = parameter_groups(branch, config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=_LR, betas=config.optim.betas, fused=True)
    stream, steps = ClipStream(len(digits.train), seed), max(1, samples // BATCH)
    bf16 = use_bf16(config, torch.device("cpu"))
    begin, flops, last = time.process_time(), 0.0, 0.0
    for step in range(steps):
        position = step * BATCH
        _, keep = counts_at(config, step / steps)
        assert isinstance(keep, int)
        x = digits.train[[stream.item(position + i) for i in range(BATCH)]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(replace(config.optim, lr=_LR), (step + 1) / (steps + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            drawn = branch.draw(x, keep, seed, position)
            loss = branch.loss(branch.encode_all([x], [drawn.masks.keep]), [x], [drawn])
        loss.backward()
        nn.utils.clip_grad_norm_(branch.parameters(), config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cost = forward_flops(meta_model(config.model), 1, keep)
        flops += (cost.audio_encoder + cost.audio_decoder) / steps
        last = float(loss.detach()) if step + 1 == steps else last
    return {
        "cpu_seconds": time.process_time() - begin,
        "probe": _probe(branch, digits, seed),
        "untrained_probe": untrained,
        "loss": last,
        "gflop_per_clip": flops * 1e-9,
    }


@torch.no_grad()
def _probe(branch: Branch, digits: Digits, seed: int) -> float:
    """Accuracy of a linear probe on the mean of the encoder's tokens, nothing masked."""
    features = []
    for spec in (digits.train, digits.held_out):
        parts = [branch.encode(x, all_ids(len(x), 1, branch.tokens, x.device)) for x in spec.split(256)]
        features.append(torch.cat([reduce(x[:, 1:].float(), "b n d -> b d", "mean") for x in parts]))
    target = torch.nn.functional.one_hot(digits.train_digit, 10).bool()
    probe = fit_probe(features[0], target, "accuracy", seed=seed)
    return float((probe(features[1]).argmax(dim=1) == digits.held_out_digit).float().mean())
