"""Two faults of the released code, for the audit alone (book/audit.md): a split that leaks, and an
epoch chosen on test cases.

Every other run gets what it was given back. This is the one place where training may look at test
cases, and only by `train.select: test`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from mvl.core.config import Config, ConfigError
from mvl.core.files import sha256_bytes
from mvl.core.seeds import draw_seed
from mvl.datasets.augment import Mask, Versions, Volume
from mvl.datasets.case_store import CaseStore
from mvl.datasets.splits import Split

TRAIN_SHARE = 0.8
"Share of the versions that are trained on, as released."


class VersionStore(CaseStore):
    """Items `<case>@<version>` of another store's cases; see `Versions`."""

    def __init__(self, cases: CaseStore, items: Sequence[str], fixed: bool) -> None:
        """`fixed`: `get` gives the version itself, drawn once for good; else the case as it is,
        whose version is drawn on each visit.

        Differs: the released code draws the versions of its validation items anew on each visit
        too.
        """
        self.cases_of, self.fixed, self.case_ids = cases, fixed, tuple(items)
        self.kept = {}
        self.task_data, self.task, self.data = cases.task_data, cases.task, cases.data
        self.change = Versions(cases.data)
        self.places = {case: index for index, case in enumerate(cases.case_ids)}

    def get(self, index: int) -> tuple[Volume, Mask]:
        """Image and label of an item on the network's grid."""
        case, _, version = self.case_ids[index].rpartition("@")
        image, label = self.cases_of.get(self.places[case])
        return (
            self.change(image, label, draw_seed(0, "version", self.case_ids[index]), int(version))
            if self.fixed
            else (image, label)
        )

    def items(self) -> tuple[CaseStore, list[int]]:
        """The store of the cases, and the index of each item's case there."""
        if self.fixed:
            return super().items()
        return self.cases_of, [self.places[item.rpartition("@")[0]] for item in self.case_ids]

    def version(self, index: int) -> tuple[int, ...]:
        """Which version of its case the item is."""
        return (int(self.case_ids[index].rpartition("@")[2]),)

    def warm(self) -> None:
        """Decode the cases now."""
        self.cases_of.warm()


def deal_versions(
    case_ids: Sequence[str], name: str, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The released recipe: three versions of each case, dealt by chance, 80 % to training and the
    rest to validation."""
    items = sorted(
        (f"{case}@{version}" for case in case_ids for version in range(Versions.count)),
        key=lambda item: draw_seed(seed, name, item),
    )
    cut = int(TRAIN_SHARE * len(items))
    return tuple(items[:cut]), tuple(items[cut:])


def audited(
    config: Config, split: Split, train: CaseStore, make: Callable[[tuple[str, ...]], CaseStore]
) -> tuple[CaseStore, CaseStore, Split]:
    """Training cases, validation cases and split to record.

    They are unchanged unless the config switches on one of the audited faults.

    Raises:
        ConfigError: `data.split: copies` without an augmentation that has versions, or on a part of
            the data.
    """
    if config.data.split != "copies":
        store = make(split.test if config.train.select == "test" else split.val)
        store.opened = config.train.select == "test"
        return train, store, split
    if config.fraction != 1 or config.data.augmentation not in ("released_planes", "one_plane"):
        raise ConfigError(
            f"{config.study}/{config.system}: data.split copies needs fraction 1 and"
            " data.augmentation released_planes or one_plane"
        )
    seen, watched = deal_versions((*split.train, *split.val), f"{config.task} {config.fold}")
    cases = make((*split.train, *split.val))
    digest = sha256_bytes(json.dumps([config.task, seen, watched, split.test]).encode())
    return (
        VersionStore(cases, seen, fixed=False),
        VersionStore(cases, watched, fixed=True),
        Split(seen, watched, split.test, digest),
    )
