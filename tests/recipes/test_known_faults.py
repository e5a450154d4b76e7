"""Known faults of the published datasets: the table, and what a run does with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cremad
import kinetics_sounds
import vggsound
from recipe_common.data.datasets.known_faults import KNOWN_FAULTS, Report
from recipe_common.data.samples.faulty import PAGE, fault_lines
from recipe_common.data.samples.youtube import clip_key

from .clip_tree import load, names_of, write_frames, write_lines, write_sound
from .cremad_tree import names, write_clips, write_list
from .test_every_recipe import MODULES
from .tiny_videos import write_video

ROOT = Path(__file__).parents[2]
BAD = "1064_IEO_DIS_MD"
FAULT = "video of one minute, with all emotions of that sentence"


def test_every_recipe_has_a_record_and_nothing_else_has() -> None:
    assert set(KNOWN_FAULTS) == {module.__name__ for module in MODULES}
    assert list(KNOWN_FAULTS) == sorted(KNOWN_FAULTS)


@pytest.mark.parametrize("name", KNOWN_FAULTS)
def test_every_fault_has_its_source(name: str) -> None:
    record = KNOWN_FAULTS[name]
    assert record.trackers
    for fault in record.faults:
        assert fault.reports
        assert fault.fault
        assert fault.here
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", report.repository) for report in fault.reports)
        assert all(len(set(fault.samples)) == len(fault.samples) for fault in record.faults)


def test_addresses_lead_to_issues_and_files() -> None:
    assert Report("a/b", 6).address == "https://github.com/a/b/issues/6"
    assert Report("a/b", "README.md").address == "https://github.com/a/b/blob/HEAD/README.md"


def test_the_page_exists() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    for record in KNOWN_FAULTS.values():
        for fault in record.faults:
            assert all(f"]({report.address})" in page for report in fault.reports)
            assert all(f"`{sample}`" in page for sample in fault.samples)
    assert page.count("none found") == sum(not record.faults for record in KNOWN_FAULTS.values())


def test_samples_are_named_once_and_the_rest_is_counted() -> None:
    faults = {f"clip{number:02d}": "silent" for number in range(30)}
    assert fault_lines(faults, ["other"]) == ()
    assert fault_lines(faults, ["clip03", "other"]) == (
        f"1 sample with a known fault is kept, see {PAGE}:",
        "  clip03: silent",
    )
    lines = fault_lines(faults, faults)
    assert lines[0] == f"30 samples with known faults are kept, see {PAGE}:"
    assert lines[-1] == "  ... and 20 more"
    assert len(lines) == 12


@pytest.fixture
def crema(tmp_path: Path) -> Path:
    """48 clips and two with a fault, both in the training list; the wav file of one has its former name."""
    clips = names(actors=4)
    write_clips(tmp_path, [*clips, BAD, "1040_ITH_SAD_XX"])
    write_list(tmp_path / "train.csv", [*clips[:36], BAD, "1040_ITH_SAD_XX"])
    write_list(tmp_path / "test.csv", clips[36:])
    wav = tmp_path / "AudioWAV" / "1040_ITH_SAD_XX.wav"
    wav.rename(wav.with_name("1040_ITH_SAD_X.wav"))
    return tmp_path


def crema_data(root: Path, **changes: Any) -> Any:
    return load(cremad.RECIPE, root, **changes)


def test_cremad_pairs_a_clip_under_both_of_its_names(crema: Path) -> None:
    data = crema_data(crema)
    assert "1040_ITH_SAD_XX" in names_of(data.train) + names_of(data.val)
    assert data.skipped == ()


@pytest.mark.parametrize("split", ["random", "speaker"])
def test_cremad_lists_a_clip_with_two_names_once(crema: Path, split: str) -> None:
    data = crema_data(crema, split=split)
    parts = [name for part in (data.train, data.val, data.test) for name in names_of(part)]
    assert [name for name in parts if name.startswith("1040")] == ["1040_ITH_SAD_XX"]
    assert len(parts) == 50


def test_a_run_names_faulty_clips_and_keeps_them(crema: Path) -> None:
    data = crema_data(crema)
    assert BAD in names_of(data.train) + names_of(data.val)
    assert f"  {BAD}: {FAULT}" in data.summary
    assert f"1 sample with a known fault is kept, see {PAGE}:" in data.summary


def test_a_faulty_clip_that_cannot_be_read_is_skipped_and_not_kept(crema: Path) -> None:
    (crema / "AudioWAV" / f"{BAD}.wav").write_bytes(b"broken")
    data = crema_data(crema, skip_bad=True)
    assert BAD not in names_of(data.train) + names_of(data.val)
    assert not any("known fault" in line for line in data.summary)
    assert any(BAD in line for line in data.skipped)


def test_prepare_names_faulty_clips_and_takes_the_former_wav_file(tmp_path: Path, capsys: Any) -> None:
    for name in ("1001_DFA_ANG_XX", BAD, "1040_ITH_SAD_XX"):
        write_video(tmp_path / "VideoFlash" / f"{name}.flv", codec="flv")
    write_sound(tmp_path / "AudioWAV" / "1040_ITH_SAD_X.wav")
    assert cremad.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert f"  {BAD}: {FAULT}" in capsys.readouterr().out
    assert not (tmp_path / "AudioWAV" / "1040_ITH_SAD_XX.wav").exists()
    assert (tmp_path / "Image-01-FPS" / "1040_ITH_SAD_XX").is_dir()


def test_faulty_clips_of_youtube_are_found_in_any_spelling(tmp_path: Path) -> None:
    bad = "G1x66WZKZKQ_215"
    assert bad in KNOWN_FAULTS["vggsound"].samples
    clips = [bad, *(f"{number:011d}_{number}" for number in range(40))]
    lines = [
        f"{clip[:11]},{clip[12:]},air horn,{'test' if index > 30 else 'train'}" for index, clip in enumerate(clips)
    ]
    write_lines(tmp_path / "vggsound.csv", lines)
    for clip in clips:
        write_sound(tmp_path / "audio" / f"{clip}.wav")
        write_frames(tmp_path / "visual" / f"{clip[:11]}_{int(clip[12:]):06d}")
    data = load(vggsound.RECIPE, tmp_path, num_classes=1)
    assert f"  {bad}: listed as broken by the SparseSync authors" in data.summary


def test_names_of_faulty_youtube_clips_are_keys() -> None:
    for name in ("vggsound", "kinetics_sounds"):
        assert all(clip_key(sample) == sample for sample in KNOWN_FAULTS[name].samples)
    assert kinetics_sounds.RECIPE.name in KNOWN_FAULTS


def test_the_parts_of_a_published_list_hold_the_faulty_clips() -> None:
    # Names as in data.csv of the OGM-GE code.
    assert {BAD, "1064_TIE_SAD_XX", "1076_MTI_NEU_XX", "1076_MTI_SAD_XX"} == set(KNOWN_FAULTS["cremad"].samples)
