"""docs/quality.md, written from the lines of `benchmarks/quality.py`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.frontier import SETS, Result, Study
from benchmarks.quality_view import Grid, View, views

INTRODUCTION = """\
Each setting is pretrained with the sample budgets and seeds of its columns and scored on held-out clips. What counts
is the score for what it cost, in CPU seconds and in FLOPs, not the score alone. Bold: the cheapest that reaches a
score. Only what was measured counts; nothing is interpolated. `benchmarks/quality.py` measures it."""
ABOUT = """\
| | |
| --- | --- |
| × | samples of the pretraining, as a part of what the recipe takes; each budget has a schedule of its own length |
| score | mean ± standard deviation over the seeds |
| 95 % | interval of that mean. It covers the choice of seeds (Student's t) and of held-out clips (mean half width of \
the runs' bootstrap intervals), joined as the root of the sum of their squares; with one seed, of the clips alone |
| of MAViL | difference to `mavil-tiny` with the same seed and samples; (1 of 3): of the one of \
three seeds that both have |
| TFLOP | of the pretraining: three forwards of each sample, the teacher's of a second stage, and Muon's iterations |
| CPU s | of the pretraining, decoding included, in one thread; compared within one invocation of the study alone |
| mean of five folds | each fold is pretrained and probed by itself; CPU seconds and TFLOP are of one fold |
| untrained | the same probe of models as they are initialised |
| probe | linear, on frozen features of clips without masks |
| a quarter, half decoded | both decoders cross-attend, and predict that fraction of the masked patches |
| Muon | its five iterations, unless another number is named, for the matrices of the blocks; AdamW for the rest |
| mavil-tiny-lean | half decoded, Muon of three iterations; at the recipe's learning rate unless another is named |
| fixed ratio | MAViL's masking ratio throughout |
| blocks mixed | each decoder block reads a learnt mix of the encoder's |
| columns, rows, tubes hidden | masked as wholes: time columns or mel rows of the spectrogram, tubes of the video |
| one encoder | audio and video share one stack of encoder blocks |
| min-SNR, exponent 0.8, half of them mask tokens | of diffused patches: timesteps drawn as Min-SNR weighs them; \
alpha-bar to that power; half of the samples with mask tokens |
| contrast apart | the contrastive loss uses a separate view with a masking ratio of one quarter |
| averaged weights | an exponential moving average (0.98 a step) is scored |
| then stage 2 | five eighths of the samples train the teacher, the rest its student; seconds and TFLOP cover both |"""


LEAN = """\
Muon and the recipe made with it, `mavil-tiny-lean`, on a CPU that computes in bfloat16. The studies of digits, ESC-10 \
and GRID after this one were run in float32 on another machine, those at one budget on further machines, whose \
precision is not recorded. Compare scores within one study only, seconds within one invocation only."""


def picture(name: str, study: str = "") -> str:
    """Its file in docs/."""
    return f"quality-{study and study + '-'}{name}.png"


EARLIER = """\
Studies of one number of samples each, by `benchmarks/points.py` and `benchmarks/recipes.py`, mean and deviation of \
three seeds; an untrained score without deviation is of one model. CPU seconds are of the pretraining, in one thread \
beside other work, and compare within a table and commit at most."""


def page(results: Sequence[Result], earlier: Sequence[Grid] = (), lean: Sequence[Result] = ()) -> str:
    """docs/quality.md, whole. lean: lines of the study of the lean recipe, which stand first."""
    parts = [
        "<!-- Written by `python benchmarks/quality.py board`, not by hand. -->",
        "# Quality: who reaches which score at what cost",
        INTRODUCTION,
        ABOUT,
    ]
    if lean:
        parts += ["## Muon and a lean recipe", LEAN]
    for view in views(lean):
        parts += shown_of(view, "###", "lean")
    shown = views(results)
    for view in shown:
        parts += shown_of(view, "##")
    measured = {view.name for view in [*views(lean), *shown]}
    absent = [study.title for name, study in SETS.items() if name not in measured]
    if absent:
        parts += ["## Not measured at several budgets yet", f"There are no lines of: {'; '.join(absent)}."]
    if earlier:
        parts += ["## At one budget", EARLIER]
    for grid in earlier:
        parts += [f"**{grid.title}**", grid.markdown()]
    return "\n\n".join(parts) + "\n"


def shown_of(view: View, level: str, study: str = "") -> list[str]:
    """A set: its picture, its tables, and what is to be known of its lines."""
    parts = [f"{level} {view.study.title}", f"![{alternative(view.study)}]({picture(view.name, study)})"]
    for grid in view.grids():
        parts += [f"**{grid.title}**", grid.markdown()]
    return [*parts, "\n".join(f"- {note}" for note in view.notes())]


def alternative(study: Study) -> str:
    return f"{study.title}: scores of the settings against CPU seconds and TFLOP of their pretraining"
