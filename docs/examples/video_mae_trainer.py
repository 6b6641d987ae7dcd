"""VideoMAE of transformers, patched, trained by transformers.Trainer.

    python docs/examples/video_mae_trainer.py                    # a tiny model on generated clips, a few seconds

For your own: load `VideoMAEForPreTraining.from_pretrained(...)`, give a data set whose items are `pixel_values`
[T, 3, H, W], and leave the rest as it is.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, VideoMAEConfig, VideoMAEForPreTraining

from maekernels.integrations import patch, tube_mask

SMALL = VideoMAEConfig(
    image_size=32,
    patch_size=8,
    num_frames=4,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)


class Clips(Dataset):
    """A bright bar that moves, each clip at its own pace; a tube mask for each, from its number."""

    def __init__(self, config: VideoMAEConfig, count: int = 64) -> None:
        self.config, self.count = config, count
        self.frames = config.num_frames // config.tubelet_size
        self.patches = (config.image_size // config.patch_size) ** 2

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        size = self.config.image_size
        clip = torch.zeros(self.config.num_frames, 3, size, size)
        for t, frame in enumerate(clip):
            frame[:, :, (i + t * (i % 5 + 1)) % size] = 2.0
        mask = tube_mask(1, self.frames, self.patches, 0.75, seed=0, offset=i)[0]
        return {"pixel_values": clip, "bool_masked_pos": mask}


def main(output: str, steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    model = VideoMAEForPreTraining(SMALL)
    clips = Clips(SMALL)
    # How many tokens a mask hides is known here: with it the forward never waits for the device.
    patch(model, masked=int(clips[0]["bool_masked_pos"].sum()))
    settings = {"max_steps": steps, "learning_rate": 3e-3, "logging_steps": 5, "disable_tqdm": True}
    arguments = TrainingArguments(
        output, per_device_train_batch_size=8, report_to=[], save_strategy="no", label_names=[], **settings
    )
    trainer = Trainer(model, arguments, train_dataset=clips)
    trainer.train()
    model.save_pretrained(output)  # the same weights under the same names: loads with or without the patch
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else "video-mae"))
