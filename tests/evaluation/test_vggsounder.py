"""VGGSounder's labels: its file, and scores by hand on a few clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config
from diffmavil.config.errors import UsageError
from diffmavil.config.files import save_config
from diffmavil.data.clips import Clip, Stored
from diffmavil.evaluate import main
from diffmavil.evaluation.features import FeatureTable, untrained_model
from diffmavil.evaluation.judge import Answers, Judgement
from diffmavil.evaluation.vggsounder import Annotations, check_known, judge_vggsounder, read_annotations
from diffmavil.model.weights import export_weights

HEADER = "video_id,label,modality,background_music,static_image,voice_over\n"


def write(tmp_path: Path, rows: Sequence[str], header: str = HEADER) -> Path:
    path = tmp_path / "vggsounder.csv"
    path.write_text(header + "".join(row + "\n" for row in rows))
    return path


def test_the_file_is_read(tmp_path):
    rows = [
        '--i-y1v8Hy8_000000,"male speech, man speaking",A,False,False,True',
        "--i-y1v8Hy8_000000,rain,AV,,,",
        "b_1,rain,V,,,",
    ]
    found = read_annotations(write(tmp_path, rows)).labels
    assert found == {"--i-y1v8Hy8_000000": {"male speech, man speaking": "A", "rain": "AV"}, "b_1": {"rain": "V"}}


def test_clips_with_background_music_are_left_out(tmp_path):
    header = "video_id,label,modality,background_music,static_image,voice_over\n"
    rows = [
        "a_1,rain,AV,True,False,False",
        "a_1,wind,A,False,False,False",
        "b_1,rain,V,False,False,False",
        "c_1,rain,A",
    ]
    found = read_annotations(write(tmp_path, rows, header))
    assert found.labels == {"b_1": {"rain": "V"}, "c_1": {"rain": "A"}}
    assert found.with_music == {"a_1"}


@pytest.mark.parametrize(
    ("header", "rows", "why"),
    [
        ("video_id,label\n", ["a,b"], "no column modality"),
        ("", [], "no column video_id, label, modality"),
        (HEADER, ["a,rain,X,,,"], r"line 2: modality='X'"),
        (HEADER, ["a,rain,A,,,", ",rain,A,,,"], r"line 3: video_id, label"),
        (HEADER, ["a,rain"], r"line 2: modality=None"),
    ],
    ids=["a column less", "empty", "another modality", "no id", "a cell less"],
)
def test_another_layout_is_refused(tmp_path, header, rows, why):
    with pytest.raises(ValueError, match=why):
        read_annotations(write(tmp_path, rows, header))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        read_annotations(tmp_path / "nothing.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not a readable CSV"):
        read_annotations(tmp_path / "x.csv")


CLASSES = ["dog", "rain", "speech"]
LABELS = {
    "a_000030": {"dog": "AV", "speech": "A"},
    "b_000007": {"rain": "V"},
    "c": {"rain": "AV", "jazz": "A"},
}


def judged(paths: list[str], starts: list[float | None], scores: dict[str, torch.Tensor]) -> Judgement:
    """Scores of the clips after the first, of which there are none."""
    names = ["first.mp4", *paths]
    when = [None, *starts]
    cut_from = list(zip(names, when, strict=True))
    table = FeatureTable({}, [()] * len(names), CLASSES, names, cut_from, when, len(names), {})
    found = Judgement(CLASSES, {}, {"trained": {}, "chance": {}}, {"trained": {}})
    found.answers = Answers(torch.arange(1, len(names)), scores)
    judge_vggsounder(found, table, Annotations(LABELS), seed=0)
    return found


def test_each_kind_of_label_is_scored_by_its_features():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    kinds = {"audio": scores, "video": scores, "fused": scores}
    found = judged(["x/a_000030.mp4", "b.mp4", "c.mp4", "unknown.mp4"], [None, 7.0, 0.0, None], kinds)
    trained, chance = found.results["trained"], found.results["chance"]
    assert trained["vggsounder_audible/hit@1"] == 1  # a: dog or speech; c: rain
    assert trained["vggsounder_audible/f1@1"] == pytest.approx(4 / 5)
    assert trained["vggsounder_visible/hit@1"] == pytest.approx(2 / 3, abs=1e-6)  # not b
    assert trained["vggsounder_both/hit@1"] == 1
    # a and c: dog and rain come first; speech is second of two.
    assert trained["vggsounder_audible/mAP"] == pytest.approx((1 + 1 + 1 / 2) / 3, abs=1e-6)
    assert chance["vggsounder_audible/hit@1"] == 0.5
    assert chance["vggsounder_visible/mAP"] == pytest.approx((1 / 3 + 2 / 3) / 2, abs=1e-6)
    for metric, (low, high) in found.intervals["trained"].items():
        assert 0 <= low <= trained[metric] <= high <= 1, metric
    assert found.notes == [
        "VGGSounder: it has labels of 3 of the 4 held-out clips. 1 of its classes are none of the training clips' and "
        "are left out."
    ]


def test_a_model_with_sound_alone_is_scored_by_what_is_audible():
    found = judged(["a_000030.mp4", "c.mp4"], [None, None], {"audio": torch.eye(3)[:2]})
    assert {metric.split("/")[0] for metric in found.results["trained"]} == {"vggsounder_audible"}


def test_clips_that_it_does_not_know_are_told():
    found = judged(["other.mp4"], [None], {"audio": torch.eye(3)[:1]})
    assert found.results["trained"] == {}
    assert found.notes == ["VGGSounder: it has labels of 0 of the 1 held-out clips."]


def test_a_prepared_clip_is_found_by_the_name_that_its_file_had():
    clip = Clip(
        "set/shard-000000.tar/00000000-0000", stored=Stored("set", "s", 0, 0, 0, 0, 0, 0), origin="a_000030.mp4"
    )
    check_known(Annotations(LABELS), [clip])
    check_known(Annotations(LABELS), [replace(clip, origin="a.mp4", cut_at=30.0)])
    with pytest.raises(ValueError, match=r"labels of none of the 1 held-out clips, as x\.mp4.*ID_000030\.mp4"):
        check_known(Annotations(LABELS), [replace(clip, origin="x.mp4")])


def test_a_wrong_file_ends_the_command_before_anything_is_decoded(config: Config, tmp_path):
    save_config(config, tmp_path / "config.yaml")
    export_weights(untrained_model(config.model, seed=11), config, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="no column modality"):
        main(["--run-dir", str(tmp_path), "--vggsounder", str(write(tmp_path, [], "video_id,label\n"))])
