"""The sound of a synthetic clip: a note at each impact, over a hum."""

from __future__ import annotations

import numpy as np

from diffmavil.data.synthetic.latents import SECONDS, Kind, Latents, SceneStyle, log_between

RATE = 16_000
SAMPLES = round(SECONDS * RATE)

_NOTE_SECONDS = 1.6
_HUM_OCTAVES = 0.12
# Partials of a struck bar, free at both ends: not multiples of the first, which is what makes it a bell.
_BELL = ((1.0, 1.0), (2.756, 0.7), (5.404, 0.5), (8.933, 0.3))
_ATTACK = 0.002


def render_sound(kind: Kind, latents: Latents, style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    """Render a clip's waveform: float32 `[SAMPLES]` at RATE, in [-1, 1], the impacts at `latents.impacts`."""
    note = _note(kind.timbre, latents, style, rng)
    wave = np.zeros(SAMPLES + len(note))
    for second, strength in zip(latents.impacts, latents.strengths, strict=True):
        start = round(second * RATE)
        if -len(note) < start < SAMPLES:
            part = note[max(-start, 0) :]
            begin = max(start, 0)
            wave[begin : begin + len(part)] += strength * part
    wave = wave[:SAMPLES]
    if kind.humming:
        wave = wave + _hum(latents, rng)
    wave += _amplitude(latents.noise_level) * rng.standard_normal(SAMPLES)
    return np.clip(wave, -1, 1).astype(np.float32)


def pitch(latents: Latents, style: SceneStyle) -> float:
    """Fundamental of the notes in Hz: the larger the object, the lower."""
    return log_between(1 - latents.size, style.pitch)


def _note(timbre: str, latents: Latents, style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    """One struck note, [samples] float64. The kinds have the same energy and the same range of pitch."""
    seconds = np.arange(round(_NOTE_SECONDS * RATE)) / RATE
    base = pitch(latents, style)
    if timbre == "bell":
        partials = [(ratio * base, level, 0.5 / ratio**0.5) for ratio, level in _BELL]
        note = _partials(partials, latents, seconds, rng)
    elif timbre == "string":  # all harmonics; the higher, the sooner gone
        partials = [(k * base, 1 / k**0.7, 0.3 / k**0.6) for k in range(1, 13)]
        note = _partials(partials, latents, seconds, rng)
    elif timbre == "reed":  # odd harmonics, held and let go
        partials = [(k * base, 1 / k, 8.0) for k in range(1, 16, 2)]
        hold = 0.35 * latents.ring
        note = _partials(partials, latents, seconds, rng) * np.clip((hold - seconds) / 0.05 + 1, 0, 1)
    elif timbre == "drop":  # a tone that falls by two octaves
        fall = 0.12 * latents.ring
        cycles = base * (seconds + 3 * fall * (1 - np.exp(-seconds / fall)))
        note = np.sin(2 * np.pi * (cycles + rng.random())) * np.exp(-seconds / (2 * fall))
    elif timbre == "rattle":  # five clicks of bright noise
        clicks = np.exp(-(seconds % 0.07) / 0.012) * (seconds < 5 * 0.07)
        note = _band_noise(len(seconds), 5 * base, 0.5, rng) * clicks
    else:  # snare: a burst of noise around the pitch
        noise = _band_noise(len(seconds), base * 1.6, 0.7, rng)
        note = noise * np.exp(-seconds / (0.1 * latents.ring))
    note = _tilted(note, latents.tilt) * np.clip(np.minimum(seconds, seconds[-1] - seconds) / _ATTACK, 0, 1)
    # As loud as a sine of amplitude 0.4 that rings for 0.2 s, before the gain.
    energy = 0.4**2 / 2 * 0.2 * RATE
    return note * np.sqrt(energy / np.sum(note**2)) * 10 ** (latents.gain / 20)


def _partials(
    partials: list[tuple[float, float, float]], latents: Latents, seconds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Sum of decaying sines (Hz, level, seconds to 1/e), those below 7.5 kHz."""
    note = np.zeros_like(seconds)
    for hertz, level, decay in partials:
        phase = rng.random()
        if hertz < 7500:
            note += level * np.exp(-seconds / (decay * latents.ring)) * np.sin(2 * np.pi * (hertz * seconds + phase))
    return note


def _hum(latents: Latents, rng: np.random.Generator) -> np.ndarray:
    hum = _band_noise(SAMPLES, latents.hum_pitch, _HUM_OCTAVES, rng)
    return hum * _amplitude(latents.hum_level) / np.sqrt(np.mean(hum**2))


def _band_noise(samples: int, hertz: float, octaves: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise around a centre; `octaves` is the standard deviation of its Gaussian band."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    octave = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 1) / hertz)
    return np.fft.irfft(spectrum * np.exp(-0.5 * (octave / octaves) ** 2), samples)


def _tilted(note: np.ndarray, slope: float) -> np.ndarray:
    """Change the spectrum by `slope` dB for each octave, 0 at 500 Hz."""
    hertz = np.maximum(np.fft.rfftfreq(len(note), 1 / RATE), 50)
    return np.fft.irfft(np.fft.rfft(note) * (hertz / 500) ** (slope / (20 * np.log10(2))), len(note))


def _amplitude(decibel: float) -> float:
    return 10 ** (decibel / 20)
