"""Fine-tuned runs, made once for each process of pytest."""

from tests.training.tuned import arguments, one_thread, sounds, weights, whole

__all__ = ["arguments", "one_thread", "sounds", "weights", "whole"]
