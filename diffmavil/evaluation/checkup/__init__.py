"""Why is a score below the paper's? A run beside what its preset would have: clips, sound, weights, features."""

from diffmavil.evaluation.checkup.case import Case, open_case
from diffmavil.evaluation.checkup.examine import examine
from diffmavil.evaluation.checkup.findings import Checkup, Finding

__all__ = ["Case", "Checkup", "Finding", "examine", "open_case"]
