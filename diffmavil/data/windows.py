"""Which seconds of a clip are taken: the picture's window and the sound's, on one clock.

The longer of the two windows is laid first, inside the time that has both picture and sound; the shorter lies inside
it. So with 4 s of picture and 10.24 s of sound, the picture lies at random inside the sound's window, as in MAViL.
Times are seconds on the container's clock (presentation time stamps times time base).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MIN_SECONDS = 0.5
"""A clip whose picture and sound share less time than this is of no use, nor is a shorter picture alone."""
MIN_SOUND_SECONDS = 0.1
"""The same of sound alone: spoken digits last 0.2 s, and what is missing of the window is padded."""


@dataclass(frozen=True)
class Span:
    """Seconds from `start` to `end`."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return max(0.0, self.end - self.start)

    def later(self, seconds: float) -> Span:
        return Span(self.start + seconds, self.end + seconds)

    def intersect(self, other: Span) -> Span:
        return Span(max(self.start, other.start), min(self.end, other.end))


class Windows(NamedTuple):
    """`video`: shown by the frames. `audio`: the whole waveform, which may reach past the sound's end."""

    video: Span
    audio: Span


def free_seconds(picture: Span, sound: Span, video_seconds: float, audio_seconds: float) -> float:
    """Seconds by which the longer window can be moved inside the clip; arguments as of `choose_windows`."""
    longest = max(min(video_seconds, picture.length), audio_seconds)
    return max(0.0, picture.intersect(sound).length - longest)


def choose_windows(
    picture: Span, sound: Span, video_seconds: float, audio_seconds: float, place: tuple[float, float]
) -> Windows:
    """Lay both windows over a clip.

    Args:
        picture: time covered by frames.
        sound: time covered by samples; the two overlap. Of one that is not wanted: as the other, with a length of 0.
        video_seconds, audio_seconds: wanted lengths. A shorter picture gives a shorter video window; the audio window
            always has its full length (what lies past the sound's end is padding).
        place: two numbers in [0, 1]: where the longer window lies in the clip, and where the video window lies inside
            a longer audio window, as far as there is sound. A longer video window has the audio window at its centre,
            or as near to it as the sound is.
    """
    common = picture.intersect(sound)
    video_seconds = min(video_seconds, picture.length)
    outer = common.start + place[0] * free_seconds(picture, sound, video_seconds, audio_seconds)
    last = max(picture.start, picture.end - video_seconds)
    if audio_seconds > video_seconds:
        audio = outer
        low = min(max(outer, picture.start), last)
        heard = max(low, common.end - video_seconds)  # the window may reach past the sound, where nothing is heard
        high = min(outer + audio_seconds - video_seconds, last, heard)
        video = low + place[1] * max(0.0, high - low)
    else:
        video = min(outer, last)
        centre = video + (video_seconds - audio_seconds) / 2
        audio = max(common.start, min(centre, common.end - audio_seconds))
    return Windows(Span(video, video + video_seconds), Span(audio, audio + audio_seconds))
