"""Settings of the study of quality, `benchmarks/quality.py`: a preset each, and the flags that change it."""

from __future__ import annotations

from benchmarks.recipes import PRESETS
from diffmavil.model.weights import EMA_FILE

BASE = PRESETS[0]
LEAN = "mavil-tiny-lean"
BUDGETS = (0.25, 0.5, 1.0, 2.0)
CROSS = "--model.video-decoder.attention cross"
AUDIO_CROSS = "--model.audio-decoder.attention cross"
FIXED = "--mask.video.kind constant --mask.audio.kind constant"
QUARTER = f"{CROSS} {AUDIO_CROSS} --model.decode-fraction 0.25"
HALF = f"{CROSS} {AUDIO_CROSS} --model.decode-fraction 0.5"
MUON = "--optim.name muon"
ADAPTIVE = "--batch.rule flops --batch.lr-rule sqrt"
CHANGES: dict[str, str] = {
    **dict.fromkeys(PRESETS, ""),
    LEAN: "",
    "mavil-tiny, diffused patches": "--model.diffusion.corruption diffusion",
    "mavil-tiny, diffused, video cross-attends": f"--model.diffusion.corruption diffusion {CROSS}",
    "diffmavil-tiny, audio decoder cross-attends": AUDIO_CROSS,
    "diffmavil-tiny-fast, half decoded": "--model.decode-fraction 0.5",
    "diffmavil-tiny, every timestep": "--model.diffusion.first-step 1",
    "diffmavil-tiny, fixed ratio": FIXED,
    "diffmavil-tiny, adaptive batch": ADAPTIVE,
    "diffmavil-tiny-fast, adaptive batch": ADAPTIVE,
    "diffmavil-tiny-fast, 8 crops kept": "--data.crops-kept 8",
    "mavil-tiny, a quarter decoded": QUARTER,
    "mavil-tiny, half decoded": HALF,
    "mavil-tiny, Muon": MUON,
    "mavil-tiny, a quarter decoded, Muon": f"{QUARTER} {MUON}",
    "mavil-tiny, half decoded, Muon": f"{HALF} {MUON}",
    "mavil-tiny, half decoded, Muon of 3 steps": f"{HALF} {MUON} --optim.muon-steps 3",
    "mavil-tiny-lean, twice the learning rate": "--optim.lr 2e-3",
    "mavil-tiny-lean, four times the learning rate": "--optim.lr 4e-3",
    "mavil-tiny-lean, twice the rate, diffused": "--optim.lr 2e-3 --model.diffusion.corruption diffusion",
    "mavil-tiny-lean, twice the rate, diffused, cosine": (
        "--optim.lr 2e-3 --model.diffusion.corruption diffusion --model.diffusion.schedule cosine"
    ),
    "mavil-tiny-lean, twice the rate, diffused, min-SNR": (
        "--optim.lr 2e-3 --model.diffusion.corruption diffusion --model.diffusion.draws min_snr"
    ),
    "mavil-tiny-lean, twice the rate, diffused, exponent 0.8": (
        "--optim.lr 2e-3 --model.diffusion.corruption diffusion --model.diffusion.exponent 0.8"
    ),
    "mavil-tiny-lean, twice the rate, diffused, half of them mask tokens": (
        "--optim.lr 2e-3 --model.diffusion.corruption diffusion --model.diffusion.token-share 0.5"
    ),
    "mavil-tiny-lean, twice the rate, one encoder": "--optim.lr 2e-3 --model.shared-encoder",
    "mavil-tiny-lean, twice the rate, columns hidden": "--optim.lr 2e-3 --model.audio-masks times",
    "mavil-tiny-lean, twice the rate, rows hidden": "--optim.lr 2e-3 --model.audio-masks mels",
    "mavil-tiny-lean, twice the rate, tubes hidden": "--optim.lr 2e-3 --model.video-masks tubes",
    "mavil-tiny-lean, twice the rate, contrast apart": "--optim.lr 2e-3 --model.contrast.mask-ratio 0.25",
    "mavil-tiny-lean, twice the rate, averaged weights": "--optim.lr 2e-3 --train.ema 0.98",
    "mavil-tiny, a quarter decoded, Muon of 3 steps": f"{QUARTER} {MUON} --optim.muon-steps 3",
    "diffmavil-tiny-fast, Muon": MUON,
    "diffmavil-tiny-fast, Muon of 3 steps": f"{MUON} --optim.muon-steps 3",
    "diffmavil-tiny-fast, noisier": "--model.diffusion.first-step 750",
    "mavil-tiny, twice the learning rate": "--optim.lr 2e-3",
    "diffmavil-tiny-fast, twice the learning rate": "--optim.lr 2e-3",
    "mavil-tiny, half the learning rate": "--optim.lr 5e-4",
    "diffmavil-tiny-fast, half the learning rate": "--optim.lr 5e-4",
    "diffmavil-tiny-fast, batches of 32, half the learning rate": "--train.batch-size 32 --optim.lr 5e-4",
    "mavil-tiny, batches of 32": "--train.batch-size 32",
    "diffmavil-tiny-fast, batches of 32": "--train.batch-size 32",
    "diffmavil-tiny-fast, batches of 16": "--train.batch-size 16",
    "diffmavil-tiny-fast, blocks mixed": "--model.video-decoder.reads mix --model.audio-decoder.reads mix",
    "mavil-tiny-stage2, averaged teacher": "--teacher ema",
    "mavil-tiny-lean, twice the rate, then stage 2": "--optim.lr 2e-3",
    "mavil-tiny-lean, twice the rate, then stage 2 from its weights": "--optim.lr 2e-3",
    "diffmavil-tiny-fast-stage2, averaged teacher": "--teacher ema",
}
"""Setting -> flags of the training. What stands before the comma is the preset, over which the recipe's file goes, and
the flags over that. A line more here is a setting more."""
STAGES = {
    "mavil-tiny-lean, twice the rate, then stage 2": ("--teacher",),
    "mavil-tiny-lean, twice the rate, then stage 2 from its weights": ("--teacher", "--init"),
}
"""Settings of two runs -> flags of the second that name the first."""
JUDGED = {"mavil-tiny-lean, twice the rate, averaged weights": EMA_FILE}
"""Setting -> which of a run's weights are judged, if not the last."""
FIRST_STAGE = 5 / 8
"""Share of their samples that the first takes. A step of the second is dearer, by its teacher: with four fifths of the
samples both take about as long as one stage with all."""
CHAIN = (
    "mavil-tiny",
    "mavil-tiny, diffused patches",
    "mavil-tiny, diffused, video cross-attends",
    "diffmavil-tiny",
    "diffmavil-tiny, audio decoder cross-attends",
    "diffmavil-tiny-fast, half decoded",
    "diffmavil-tiny-fast",
)
"""From MAViL to `-fast`, each differs from the one before by one thing."""
