"""A small labelled audio-visual set, rendered and encoded to H.264 + AAC on first use.

A clip is 5 s of 112 x 112 video at 16 frames a second with 16 kHz mono sound. In front of a wall an object strikes
something in a more or less steady rhythm, and every strike is seen (contact, recoil, a flash) and heard (a note) at the
same instant.

*Class* (24, `CLASSES`): one of six materials, which is seen as the wall's pattern and heard as the timbre of the
notes, times what is only seen (day or night), times what is only heard (a still or a humming room):

    planks   vertical stripes      bell     inharmonic partials of a struck bar, long
    siding   horizontal stripes    string   harmonics, the higher ones sooner gone
    tiles    a checkerboard        snare    a burst of noise around the pitch
    bricks   shifted rows          reed     odd harmonics, held and let go
    dots     a grid of dots        drop     a tone that falls by two octaves
    lattice  crossed diagonals     rattle   five clicks of bright noise

"planks-bell-night-hum" is one. Neither modality alone can tell more than 12 of the 24 apart.

*Shared by sound and picture* but not with the class, so that a clip's sound can be matched with its picture:

    when each impact falls            contact and flash         onset of the note
    how strong it is                  size of flash and leap    loudness of the note
    size of object and pattern        radius, period (loosely)  pitch: the larger, the lower

*Nuisance of one modality*: the object's shape and motion (six kinds), position, mirroring, colours of wall and object,
contrast, polarity, phase and lean of the pattern, blotches, camera shake, sensor noise, drifting silent distractors;
pitch and level of the hum, level, spectral tilt and ring of the notes, level of the noise.

Every latent is drawn without knowledge of the class (`draw_latents` is not told), and each run of 24 clips holds every
class once. `SceneStyle` has the ranges; docs/synthetic.png shows a clip of each class:

    python -m diffmavil.data.synthetic --contact-sheet docs/synthetic.png
    python -m diffmavil.data.synthetic --out DIR --split train --clips 768

A clip's bytes are a function of (`GENERATOR_VERSION`, style, seed, split, index), given the same versions of PyAV and
numpy and the same kind of processor.
"""

from diffmavil.data.synthetic.cache import GENERATOR_VERSION, ensure_synthetic
from diffmavil.data.synthetic.latents import CLASSES, KINDS, SPLITS, Kind, Latents, SceneStyle, Split

__all__ = [
    "CLASSES",
    "GENERATOR_VERSION",
    "KINDS",
    "SPLITS",
    "Kind",
    "Latents",
    "SceneStyle",
    "Split",
    "ensure_synthetic",
]
