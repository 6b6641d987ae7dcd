"""The model: separate encoders, joint fusion, one decoder per modality, and the pretraining losses."""

from diffmavil.model.mavil import DiffMAViL, Features, Losses
from diffmavil.model.reconstruct import Pictures, Reconstruction

__all__ = ["DiffMAViL", "Features", "Losses", "Pictures", "Reconstruction"]
