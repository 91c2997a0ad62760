"""What stands in the files of a results folder, as reading checks it. More keys than these are allowed everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator
from typing_extensions import NotRequired, TypedDict

from saeval.sealed import fault

Finite = Annotated[float, Field(allow_inf_nan=False)]
Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ends = Annotated[list[Finite], Field(min_length=2, max_length=2)]
Better = Literal["lower", "higher"] | None
Key = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
"""It becomes a file's name."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ScalarRecord(TypedDict):
    """A dictionary, which is checked in half the time: a large board has a million of them."""

    __pydantic_config__ = _Record.model_config  # type: ignore[misc]
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


class CurveRecord(_Record):
    kind: Literal["curve"]
    x: list[Finite | None]
    y: list[Finite | None]
    stderr: list[Error | None]
    ci95: list[Ends | None] | None = None
    x_unit: str
    unit: str
    better: Better

    @model_validator(mode="after")
    def _same_lengths(self) -> CurveRecord:
        if len({len(self.x), len(self.y), len(self.stderr), len(self.x if self.ci95 is None else self.ci95)}) > 1:
            raise ValueError("x, y, stderr and ci95 differ in length")
        return self


class TableRecord(_Record):
    kind: Literal["table"]
    columns: list[Any]
    rows: list[list[Any]]

    @model_validator(mode="after")
    def _full_rows(self) -> TableRecord:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row has more or fewer cells than there are columns")
        return self


class ArrayRecord(_Record):
    kind: Literal["array"]
    shape: list[int]
    dtype: str
    unit: str


class NotesRecord(_Record):
    kind: Literal["notes"]
    notes: list[str]


def _kind(value: Any) -> str:
    return str(value.get("kind", "scalar")) if isinstance(value, dict) else "scalar"


ValueRecord = Annotated[
    Annotated[ScalarRecord, Tag("scalar")]
    | Annotated[CurveRecord, Tag("curve")]
    | Annotated[TableRecord, Tag("table")]
    | Annotated[ArrayRecord, Tag("array")]
    | Annotated[NotesRecord, Tag("notes")],
    Discriminator(_kind),
]


class SubjectRecord(_Record):
    name: str
    hook_name: str
    kind: str = "sae"
    key: str = ""
    site: str = ""
    control: str | None = None
    of: str | None = None


class ModelRecord(_Record):
    name: str = ""


class DataRecord(_Record):
    fingerprint: str
    limit: int | None = None


class KindRecord(_Record):
    """A cell, but for its subjects."""

    metric: str
    model: ModelRecord | None
    data: DataRecord
    alias: str = ""
    over: str | None = None
    suite: str = ""
    params: dict[str, Any] | None = None


class CellRecord(KindRecord):
    subjects: list[SubjectRecord]


class _Sequences(_Record):
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


class _Finding(_Record):
    message: str


class ProvenanceRecord(_Record):
    commit: str | None = None
    libraries: dict[str, Any] | None = None
    dtypes: dict[str, Any] | None = None
    preflight: dict[str, list[_Finding]] | None = None


class ResultRecord(_Record):
    """`KEY.json`, without its checksum."""

    key: Key
    status: Literal["ok", "undefined", "failed"]
    reason: str | None
    cell: CellRecord
    values: dict[str, ValueRecord]
    components: dict[str, Any]
    provenance: ProvenanceRecord
    headline: list[str] = Field(default_factory=list)
    sample: SampleRecord | None = None
    traceback: list[str] | None = None
    arrays: str | None = None


class _CellsRecord(_Record):
    """A list for each fact, since a manifest may list 100,000 cells."""

    key: list[Key]
    kind: list[Annotated[int, Field(ge=0)]]
    subjects: list[list[Annotated[int, Field(ge=0)]]]


class LayoutRecord(_Record):
    rank_by: str | None = None
    columns: list[str] = Field(default_factory=list)
    against: list[str] | dict[str, list[str]] = Field(default_factory=list)


class ManifestRecord(_Record):
    """`manifest.json`."""

    schema_: int = Field(alias="schema")
    suite: str
    limit: int | None
    leaderboard: LayoutRecord
    kinds: list[KindRecord]
    subjects: list[SubjectRecord]
    cells: _CellsRecord
    """By their places in `kinds` and `subjects`."""
    file: str | None = None

    @model_validator(mode="after")
    def _listed(self) -> ManifestRecord:
        cells = self.cells
        if not len(cells.key) == len(cells.kind) == len(cells.subjects):
            raise ValueError("its cells' keys, kinds and subjects differ in number")
        last = max(map(max, filter(None, cells.subjects)), default=-1)
        if max(cells.kind, default=-1) >= len(self.kinds) or last >= len(self.subjects):
            raise ValueError("a cell has a kind or a subject that is not listed")
        return self


_VALUES: TypeAdapter[Any] = TypeAdapter(dict[str, ValueRecord])


def check_values(values: dict[str, Any]) -> None:
    """`TypeError` for values that could be written and never read again, such as one whose unit is no text."""
    try:
        _VALUES.validate_python(values)
    except ValidationError as error:
        raise TypeError(f"a value cannot be stored: {fault(error)}") from None
