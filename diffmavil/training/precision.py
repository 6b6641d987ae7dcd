"""In which type a device computes."""

from __future__ import annotations

import torch

from diffmavil.config import Config


def use_bf16(config: Config, device: torch.device) -> bool:
    """bf16 autocast: on request, or by default on a GPU or CPU whose matmul units compute in it."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    return has_bf16_units(device)


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16, rather than emulating it, which takes far longer."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
