"""Other people's checkpoints: read without running anything in them, and put into models of ours."""

from diffmavil.model.exchange.image_mae import InitReport, check_image_mae, initialise_from_image_mae

__all__ = ["InitReport", "check_image_mae", "initialise_from_image_mae"]
