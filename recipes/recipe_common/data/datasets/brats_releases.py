"""Releases of BraTS: how names of cases and files tell them apart, and the meaning of their labels."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import attrs

from recipe_common.data.prepare.nifti import VolumeNames
from recipe_common.data.readers.volumes import Labels
from recipe_common.errors import RecipeError

CLASSES = ("background", "necrotic core", "oedema", "enhancing tumour")
ENHANCING = CLASSES.index("enhancing tumour")
UNDERSCORES = VolumeNames(
    {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2"},
    "_seg",
    exceptions={"BraTS20_Training_355_seg": "W39_1998.09.19_Segm"},  # as distributed in 2020
)
HYPHENS = VolumeNames({"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w"}, "-seg")
NAMES = (UNDERSCORES, HYPHENS)
CAVITY = 4
"""Value of the resection cavity in the segmentations after treatment."""


@attrs.frozen
class Release:
    """One release of the challenge.

    Args:
        name: Its name in messages.
        pattern: Regular expression of its case names, in any case of letters.
        enhancing: Value of the enhancing tumour in its segmentations; those of necrotic core and oedema are 1 and 2.
        has_cavity: Whether the brains were operated on, and a further value is the resection cavity.
        has_visits: Whether the end of a case name, after the last hyphen, is the number of a visit of the patient.
    """

    name: str
    pattern: str
    enhancing: int
    has_cavity: bool = False
    has_visits: bool = False

    def patient(self, case: str) -> str:
        """Return the patient of a case: its name without the number of the visit."""
        return case.rpartition("-")[0] if self.has_visits else case


RELEASES = (
    *(Release(f"BraTS 20{year}", rf"brats{year}_.+", 4) for year in (17, 18, 19, 20)),
    Release("BraTS 2021", r"brats2021_\d+", 4),
    Release("BraTS 2023", r"brats-gli-\d+-0\d\d", 3, has_visits=True),
    Release("BraTS 2024, after treatment", r"brats-gli-\d+-[1-9]\d\d", 3, has_cavity=True, has_visits=True),
)
OTHER = Release("cases of other names", r"(?!brats-).+", 4)
"""Cases that somebody named, with the file endings of the releases up to 2021, and so their values."""
OTHER_PART = r"brats-(?!gli-)[a-z]+-"
"""Begin of the names of cases with other tumours."""
OTHER_HYPHENS = attrs.evolve(OTHER, name="cases of other names with the file endings of 2023", enhancing=3)


def release_of(case: str, names: VolumeNames = UNDERSCORES) -> Release:
    """Return the release of a case.

    Args:
        case: Name of the case.
        names: Names of its files, which tell more where the case has no name of a release.

    Raises:
        RecipeError: If it is of a part of the challenge with other tumours, such as BraTS-MEN, or if its name begins as
            those of the releases and is of none of them.
    """
    for release in (*RELEASES, OTHER_HYPHENS if names is HYPHENS else OTHER):
        if re.fullmatch(release.pattern, case, re.IGNORECASE):
            return release
    if not re.match(OTHER_PART, case, re.IGNORECASE):
        raise RecipeError(
            "Names of cases should be those of a release, such as BraTS2021_00000 or BraTS-GLI-00000-000",
            found=f"{case}, of no known release",
            fix="restore the name, or give the case one that does not begin with `brats-`",
        )
    raise RecipeError(
        "Every case should be a glioma of an adult, as in BraTS 2017 to 2021 or BraTS-GLI",
        found=f"{case}, of another part of the challenge, whose labels have another meaning",
        fix="move such cases out of the data root",
    )


def only_release(cases: Mapping[str, Release], root: Path) -> Release:
    """Return the release of all cases; that of no cases is OTHER.

    Args:
        cases: Release of each case.
        root: Their folder, for the message.

    Raises:
        RecipeError: If they are of several releases.
    """
    found: dict[Release, list[str]] = defaultdict(list)
    for case, release in cases.items():
        found[release].append(case)
    if len(found) > 1:
        counts = sorted(found.items(), key=lambda pair: -len(pair[1]))
        raise RecipeError(
            f"{root} should hold the cases of one release",
            found=" and ".join(f"{len(each):,} of {release.name} ({min(each)})" for release, each in counts),
            fix="keep one of them there: releases number labels differently, and share patients under other names",
        )
    return next(iter(found), OTHER)


def raw_labels(release: Release, cavity: str, enhancing: str) -> Labels:
    """Return the meaning of the values of NIfTI segmentations.

    Args:
        release: Release of the cases.
        cavity: `background`, or `refuse` where segmentations with a resection cavity are not read.
        enhancing: Value of the enhancing tumour, or `release`.

    Raises:
        RecipeError: If the release has a resection cavity and it is refused, or if an argument does not apply to it.
    """
    if release.has_cavity and (cavity == "refuse" or enhancing != "release"):
        raise RecipeError(
            f"Cases should be from before treatment, where {CLASSES[ENHANCING]} is the last label",
            found=f"{release.name}: {release.enhancing} is {CLASSES[ENHANCING]}, {CAVITY} the resection cavity",
            fix="add `--cavity background`, which reads the cavity as background, and leave `--enhancing` out",
        )
    if cavity != "refuse" and not release.has_cavity:
        raise RecipeError(
            "`--cavity` should be given for cases after treatment alone",
            found=f"{release.name}, which has no resection cavity",
            fix="leave the flag out",
        )
    value = release.enhancing if enhancing == "release" else int(enhancing)
    stored = {value: ENHANCING} | ({CAVITY: 0} if release.has_cavity else {})
    return Labels(len(CLASSES), stored, absent=frozenset({ENHANCING} - {value}), fix=_fix(release))


def prepared_labels(release: Release) -> Labels:
    """Return the meaning of the values of h5 files; up to 2021, the 4 of NIfTI files may be there."""
    if release.enhancing == CAVITY:
        return Labels(len(CLASSES), {release.enhancing: ENHANCING})
    fix = f"{CAVITY} is the resection cavity of BraTS 2024: make the h5 files by `prepare`, with `--cavity background`"
    return Labels(len(CLASSES), fix=fix)


def _fix(release: Release) -> str:
    if release.has_cavity:
        return f"in {release.name}, {release.enhancing} is the enhancing tumour and {CAVITY} the resection cavity"
    if release.enhancing == CAVITY:
        return (
            f"{release.name} should have {release.enhancing} for the enhancing tumour; if another script made it "
            f"{ENHANCING}, add `--enhancing {ENHANCING}`"
        )
    return (
        f"{release.name} has {release.enhancing} for the enhancing tumour, and {CAVITY} is the resection cavity "
        "after treatment, in files whose names end in -100 and more: download these files again, or, if another script "
        f"made the enhancing tumour {CAVITY}, add `--enhancing {CAVITY}`"
    )
