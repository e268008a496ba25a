"""The layout number of a run's files, by which runs of versions that named and wrote them differently are refused."""

from posegen.storage.files import read_json
from posegen.storage.store import Store

LAYOUT = 2  # 0.1.0 wrote none
RECORDS = ("plan.json", "sweep.json")  # that carry the number as "layout"
RESULTS = ("stages/*/checkpoint_*/stage.json", "scores/metrics.json")  # written after a record


def check_layout(store: Store) -> None:
    """Raise ValueError if the files of a run on this node have another version's layout.

    A folder without records and results passes: it is empty, or a run was interrupted before its first record.
    """
    records = [record for name in RECORDS if (record := read_json(store.folder / name)) is not None]
    layouts = {record.get("layout") for record in records}
    if layouts == {LAYOUT}:
        return
    if newer := [number for number in layouts if isinstance(number, int) and number > LAYOUT]:
        raise ValueError(
            f"{store.uri} was made with a newer posegen (layout {newer[0]}, this version reads {LAYOUT}). Update "
            "posegen, or give another --run."
        )
    if records or any(any(store.folder.glob(pattern)) for pattern in RESULTS):
        raise ValueError(
            f"{store.uri} was made with posegen 0.1.0, whose files this version cannot read. Give another --run, or "
            "remove it."
        )
