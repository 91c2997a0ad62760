"""Schemas of the files in a results folder, checked on reading. Additional keys are allowed everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from msgspec import UNSET, Meta, Struct, UnsetType, convert
from msgspec.json import Decoder
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from saeval.base.parameters import faults

Finite = Annotated[float, Field(allow_inf_nan=False)]
Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ends = Annotated[list[Finite], Field(min_length=2, max_length=2)]
Better = Literal["lower", "higher"] | None
Key = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
"""The stem of a result's file name."""


class _Record(TypedDict):
    """A dictionary: checked in half the time of an object, and a large board has a million of them."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)  # type: ignore[misc]


class NullRecord(_Record):
    name: str
    value: Finite
    above: str | None
    below: str | None
    qualifier: NotRequired[str | None]
    control: NotRequired[str]


class ScalarRecord(_Record):
    kind: NotRequired[Literal["scalar"]]
    value: Finite | None
    stderr: Error | None
    ci95: Ends | None
    n: Finite | None
    unit: str
    better: Better
    documents: NotRequired[int | None]
    effective_documents: NotRequired[Finite | None]
    largest_share: NotRequired[Finite | None]
    reason: NotRequired[str | None]
    proportion: NotRequired[bool]
    seeds: NotRequired[list[str]]
    comparable: NotRequired[Literal["hook", "model", "everywhere"]]
    null: NotRequired[NullRecord]
    p: NotRequired[Annotated[float, Field(ge=0, le=1)] | None]
    depends: NotRequired[str]


class CurveRecord(_Record):
    kind: Literal["curve"]
    x: list[Finite | None]
    y: list[Finite | None]
    stderr: list[Error | None]
    ci95: NotRequired[list[Ends | None] | None]
    x_unit: str
    unit: str
    better: Better
    depends: NotRequired[str]


def _same_lengths(record: CurveRecord) -> CurveRecord:
    counted = [record["x"], record["y"], record["stderr"], record.get("ci95")]
    if len({len(numbers) for numbers in counted if numbers is not None}) > 1:
        raise ValueError("x, y, stderr and ci95 differ in length")
    return record


class TableRecord(_Record):
    kind: Literal["table"]
    columns: list[Any]
    rows: list[list[Any]]
    depends: NotRequired[str]


def _full_rows(record: TableRecord) -> TableRecord:
    if any(len(row) != len(record["columns"]) for row in record["rows"]):
        raise ValueError("a row has more or fewer cells than there are columns")
    return record


class ArrayRecord(_Record):
    kind: Literal["array"]
    shape: list[int]
    dtype: str
    unit: str
    depends: NotRequired[str]


class NotesRecord(_Record):
    kind: Literal["notes"]
    notes: list[str]


def _kind(value: Any) -> str:
    return str(value.get("kind", "scalar")) if isinstance(value, dict) else "scalar"


Curve = Annotated[CurveRecord, AfterValidator(_same_lengths)]
Table = Annotated[TableRecord, AfterValidator(_full_rows)]
ValueRecord = Annotated[
    Annotated[ScalarRecord, Tag("scalar")]
    | Annotated[Curve, Tag("curve")]
    | Annotated[Table, Tag("table")]
    | Annotated[ArrayRecord, Tag("array")]
    | Annotated[NotesRecord, Tag("notes")],
    Discriminator(_kind),
]


class SubjectRecord(_Record):
    name: str
    hook_name: str
    kind: NotRequired[str]
    key: NotRequired[str]
    site: NotRequired[str]
    control: NotRequired[str | None]
    of: NotRequired[str | None]
    of_key: NotRequired[str | None]


class ModelRecord(_Record):
    name: NotRequired[str]


class DataRecord(_Record):
    fingerprint: str
    limit: NotRequired[int | None]


class KindRecord(_Record):
    """A cell without its subjects."""

    metric: str
    model: ModelRecord | None
    data: DataRecord
    alias: NotRequired[str]
    over: NotRequired[str | None]
    suite: NotRequired[str]
    params: NotRequired[dict[str, Any] | None]


class CellRecord(KindRecord):
    subjects: list[SubjectRecord]


class _Whole(TypedDict):
    """A dictionary that keeps its additional keys, since all of it is shown."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]


class _Sequences(_Whole):
    sequences: int
    documents: int


class _Look(_Sequences):
    errors: dict[str, Error | None]
    largest_of: dict[str, str | None]


class SampleRecord(_Sequences):
    stopped_adaptively: bool
    precision: dict[str, Finite]
    tokens: int
    of: _Sequences
    looks: list[_Look]


class _Finding(_Whole):
    message: str


class ProvenanceRecord(_Record):
    commit: NotRequired[str | None]
    libraries: NotRequired[dict[str, Any] | None]
    dtypes: NotRequired[dict[str, Any] | None]
    preflight: NotRequired[dict[str, list[_Finding]] | None]


class ResultRecord(_Record):
    """The content of `KEY.json`, without its checksum."""

    schema: int
    key: Key
    status: Literal["ok", "undefined", "failed"]
    reason: str | None
    cell: CellRecord
    values: dict[str, ValueRecord]
    components: dict[str, Any]
    provenance: ProvenanceRecord
    headline: NotRequired[list[str]]
    main: NotRequired[list[str] | None]
    sample: NotRequired[SampleRecord | None]
    traceback: NotRequired[list[str] | None]
    arrays: NotRequired[str | None]
    array_names: NotRequired[list[str]]


class _CellsRecord(_Record):
    """The cells of a manifest, one list per field: there may be 100,000 cells."""

    key: list[Key]
    kind: list[Annotated[int, Field(ge=0)]]
    subjects: list[list[Annotated[int, Field(ge=0)]]]


class LayoutRecord(_Record):
    rank_by: NotRequired[str | None]
    columns: NotRequired[list[str]]
    against: NotRequired[list[str] | dict[str, list[str]]]
    across_hooks: NotRequired[bool]


class ManifestRecord(_Record):
    """The content of `manifest.json`."""

    schema: int
    suite: str
    limit: int | None
    leaderboard: LayoutRecord
    kinds: list[KindRecord]
    subjects: list[SubjectRecord]
    cells: _CellsRecord
    """Kinds and subjects are indices into `kinds` and `subjects`."""
    file: NotRequired[str | None]


def _listed(record: ManifestRecord) -> ManifestRecord:
    keys, kinds, subjects = record["cells"]["key"], record["cells"]["kind"], record["cells"]["subjects"]
    if not len(keys) == len(kinds) == len(subjects):
        raise ValueError("its cells' keys, kinds and subjects differ in number")
    last = max(map(max, filter(None, subjects)), default=-1)
    if max(kinds, default=-1) >= len(record["kinds"]) or last >= len(record["subjects"]):
        raise ValueError("a cell has a kind or a subject that is not listed")
    return record


class ShownValue(Struct, gc=False):
    """A value as a leaderboard reads it: all of a scalar, or the kind of another value."""

    kind: str | None = None
    unit: str | UnsetType = UNSET
    better: Better | UnsetType = UNSET
    value: float | UnsetType | None = UNSET
    stderr: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET
    ci95: tuple[float, float] | UnsetType | None = UNSET
    n: float | UnsetType | None = UNSET
    documents: int | None = None
    effective_documents: float | None = None
    largest_share: float | None = None
    reason: str | None = None
    comparable: Literal["hook", "model", "everywhere"] | None = None
    null: dict[str, str | float | None] | None = None
    p: Annotated[float, Meta(ge=0, le=1)] | None = None
    proportion: bool = False
    seeds: list[str] | None = None
    depends: str | None = None
    notes: list[str] | None = None

    @property
    def checked(self) -> bool:
        """True if its form is valid; False if only its `ValueRecord` can say."""
        if self.kind is not None:
            return self.kind == "notes" and self.notes is not None
        return UNSET not in (self.value, self.stderr, self.ci95, self.n, self.unit, self.better)


class ShownProvenance(Struct, gc=False, frozen=True):
    preflight: dict[str, list[dict[str, Any]]] | None = None


class Shown(Struct, gc=False):
    """The part of a result that a leaderboard reads: decoded in a third of the time that the whole takes."""

    schema: int
    key: str
    status: Literal["ok", "undefined", "failed", "missing", "damaged"]
    reason: str | None
    values: dict[str, ShownValue]
    headline: list[str] = []
    main: list[str] | None = None
    sample: dict[str, Any] | None = None
    provenance: ShownProvenance = ShownProvenance()
    arrays: str | None = None
    array_names: list[str] | None = None
    """None in results of earlier versions."""

    @property
    def checked(self) -> bool:
        """True if the form of this part is valid; False if only its `ResultRecord` can say."""
        simple = self.sample is None and self.provenance.preflight is None
        return simple and not any(not value.checked for value in self.values.values())


def shown_of(record: Mapping[str, Any]) -> Shown:
    """Return the part of a checked record that a leaderboard reads."""
    values = {
        name: value if _kind(value) == "scalar" else {"kind": _kind(value), "notes": value.get("notes")}
        for name, value in record["values"].items()
    }
    return convert({**record, "values": values}, Shown)


RESULT_FILE: TypeAdapter[ResultRecord] = TypeAdapter(ResultRecord)
SHOWN_FILE = Decoder(Shown)
MANIFEST_FILE: TypeAdapter[ManifestRecord] = TypeAdapter(Annotated[ManifestRecord, AfterValidator(_listed)])
_VALUES: TypeAdapter[Any] = TypeAdapter(dict[str, ValueRecord])


def check_values(values: dict[str, Any]) -> None:
    """Raise `TypeError` for values that could be written but not read again, such as a unit that is not text."""
    try:
        _VALUES.validate_python(values)
    except ValidationError as error:
        raise TypeError(f"a value cannot be stored: {faults(error, values)[0].sentence}") from None
