"""A small labelled audio-visual set, rendered and encoded to H.264 + AAC on first use.

A clip is 5 s of 112 x 112 video at 16 frames a second with 16 kHz mono sound. An object strikes something in a more or
less steady rhythm, and every strike is seen (contact, recoil, a flash) and heard (a note) at the same instant.

*Class* (12, `CLASSES`): one of four shapes with a motion of its own, which can only be seen, and one of three timbres,
which can only be heard: "disc-bell" is a disc that bounces and sounds like a bell. Neither modality alone can tell more
than its own part.

    disc      bounces on a plate            bell    inharmonic partials of a struck bar, long
    square    swings on a string            string  harmonics, the higher ones sooner gone
    triangle  turns until it hits a peg     snare   a burst of noise around the pitch
    bars      two that clap

*Shared by sound and picture* but not with the class, so that a clip's sound can be matched with its picture:

    when each impact falls                  contact and flash         onset of the note
    how strong it is                        size of flash and leap    loudness of the note
    size of the object                      radius                    pitch: the larger, the lower
    colour of the background                red to violet             centre of an ambient hum: low to high
    brightness of the background            dark to bright            level of the hum: soft to loud

*Nuisance of one modality*: position, mirroring, object colour, background texture, camera shake, sensor noise, drifting
silent distractors; level, spectral tilt and ring of the notes, level of the noise.

Every latent is drawn without knowledge of the class (`draw_latents` is not told), and each run of 12 clips holds every
class once. `SceneStyle` has the ranges; docs/synthetic.png shows a clip of each class:

    python -m diffmavil.data.synthetic --contact-sheet docs/synthetic.png
    python -m diffmavil.data.synthetic --out DIR --split train --clips 768

A clip's bytes are a function of (`GENERATOR_VERSION`, style, seed, split, index), given the same versions of PyAV and
numpy and the same kind of processor.
"""

from diffmavil.data.synthetic.cache import GENERATOR_VERSION, ensure_synthetic
from diffmavil.data.synthetic.latents import CLASSES, SHAPES, SPLITS, TIMBRES, Latents, SceneStyle, Split

__all__ = [
    "CLASSES",
    "GENERATOR_VERSION",
    "SHAPES",
    "SPLITS",
    "TIMBRES",
    "Latents",
    "SceneStyle",
    "Split",
    "ensure_synthetic",
]
