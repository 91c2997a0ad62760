"""`saeval schema`: the JSON Schema of suites, with the parameters of everything that the plugins supply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from saeval.base.parameters import schema
from saeval.cli.glossary import members
from saeval.interfaces.documentation import description
from saeval.interfaces.sae import SAELoader
from saeval.registry.registry import Registry
from saeval.suite.by_model import MODEL, REGISTERED
from saeval.suite.schema import JudgeBudget, Leaderboard, SuiteModel
from saeval.text.packing import TokenOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_ANY = True


class _Generator(GenerateJsonSchema):
    """Any value where JSON Schema has no word for a type, such as a function."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: core_schema.CoreSchema, error_info: str) -> JsonSchemaValue:
        return {}


def suite_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON Schema of a suite file: its keys, the names that exist, and the parameters of each."""
    top = Definitions()
    properties = top.fields(SuiteModel)
    properties |= {
        "model": _model(registry, top),
        "data": _data(registry, top),
        "judge": {**properties["judge"], **_judge(registry, top)},
        "saes": {**properties["saes"], "items": _sae(registry, top)},
        "controls": {**properties["controls"], "items": _control(registry, top)},
        "metrics": {**properties["metrics"], "items": _metric(registry, top), "minItems": 1},
        "batch": {**properties["batch"], "anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]},
        "leaderboard": {"type": "object", "properties": top.fields(Leaderboard), "additionalProperties": False},
    }
    return {
        "$schema": DIALECT,
        "title": "A suite of saeval",
        "type": "object",
        "properties": properties,
        "required": ["suite", "data", "metrics"],
        "additionalProperties": False,
        "$defs": top.definitions,
    }


class Definitions:
    """The `$defs` of a schema, and the schemas of classes that refer to them."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, name: str, cls: type, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the schema of a class: its fields, or the parameters of `__init__`, beside the keys in `extra`."""
        model = _model_of(cls)
        plain = model.model_json_schema(schema_generator=_Generator, ref_template=f"#/$defs/{name}.{{model}}")
        for inner, definition in plain.pop("$defs", {}).items():
            self.definitions[f"{name}.{inner}"] = definition
        docs = {member.name: member.doc for member in members(cls)}
        own = {
            key: _described(field, docs.get(attribute, ""))
            for (key, field), attribute in zip(plain.get("properties", {}).items(), model.model_fields, strict=True)
        }
        return {
            "type": "object",
            "properties": {**(extra or {}), **own},
            "required": plain.get("required", []),
            "additionalProperties": False,
        }

    def fields(self, cls: type) -> dict[str, Any]:
        """Return the schemas of the fields of a class."""
        properties: dict[str, Any] = self.of(cls.__name__, cls)["properties"]
        return properties


def _model_of(cls: Any) -> type[BaseModel]:
    return cls if issubclass(cls, BaseModel) else schema(cls)


def _described(field: Any, doc: str) -> Any:
    if not isinstance(field, dict):
        return field
    plain = {key: value for key, value in field.items() if key != "title"}
    return {**plain, "description": " ".join(doc.split())} if doc else plain


def _by_use(names: Sequence[str], schemas: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an entry with `use:`: one of the names, each with the schema of its entry.

    `other` is the schema of an entry without `use:`.
    """
    chosen = [
        {"if": {"properties": {"use": {"const": name}}, "required": ["use"]}, "then": own}
        for name, own in schemas.items()
    ]
    rest = {"if": {"not": {"required": ["use"]}}, "then": other}
    return {"type": "object", "properties": {"use": {"enum": list(names)}}, "allOf": [rest, *chosen]}


_WITHOUT = {"required": ["use"]}


def _documented(thing: Any, own: dict[str, Any]) -> dict[str, Any]:
    words = description(thing)
    return {"description": words, **own} if words else own


def _metric(registry: Registry, top: Definitions) -> dict[str, Any]:
    common = {
        "as": {**_TEXT, "description": "another name, for the columns and files of this configuration"},
        "over": {**_TEXT, "description": "the group of SAEs that it is computed over"},
        "controls": {"type": "array", "items": _TEXT, "description": "controls of which the group has a twin"},
        "of": {"type": "array", "items": _TEXT, "description": "SAEs and controls that it is evaluated on"},
    }
    configured = {}
    for entry in registry.metrics:
        own = _documented(entry.thing, top.of(f"metric.{entry.name}", entry.thing, common))
        top.definitions[f"metric.{entry.name}"] = own
        configured[entry.name] = {"anyOf": [{"$ref": f"#/$defs/metric.{entry.name}"}, {"type": "null"}]}
    one = {"type": "object", "properties": configured, "additionalProperties": False, "minProperties": 1}
    return {"anyOf": [{"enum": registry.metrics.names()}, {**one, "maxProperties": 1}]}


def _model(registry: Registry, top: Definitions) -> dict[str, Any]:
    adapters = registry.adapters.names()
    common = {"use": _ANY, "adapter": {"enum": adapters, "description": "the adapter that loads a registered model"}}
    schemas: dict[str, dict[str, Any]] = {}
    for entry in registry.adapters:
        cls = entry.thing.entry
        own = top.of(f"adapter.{entry.name}", cls, common) if cls else {"type": "object"}
        top.definitions[f"adapter.{entry.name}"] = _documented(entry.thing, own)
        schemas[entry.name] = {"$ref": f"#/$defs/adapter.{entry.name}"}
    for registered in registry.models:  # its own reference is the default of the keys
        if registered.thing.adapter in schemas:
            schemas[registered.name] = schemas[registered.thing.adapter]
    names = sorted({*registry.models.names(), *adapters})
    top.definitions["model"] = {"anyOf": [{"enum": names}, _by_use(names, schemas, _WITHOUT)]}
    one = {"$ref": "#/$defs/model"}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}, {"type": "null"}]}


def _data(registry: Registry, top: Definitions) -> dict[str, Any]:
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    words = "share of the positions at which predictions are scored"
    schemas, without = {}, []
    for entry in registry.data:
        textual = top.of("TokenOptions", TokenOptions) if entry.thing.kind in ("text", "tokens") else {}
        common = {"use": _ANY, "score_share": {**share, "description": words}, **textual.get("properties", {})}
        own = top.of(f"data.{entry.name}", entry.thing, common)
        own["required"] = list(dict.fromkeys([*own["required"], *textual.get("required", [])]))
        top.definitions[f"data.{entry.name}"] = _documented(entry.thing, own)
        schemas[entry.name] = {"$ref": f"#/$defs/data.{entry.name}"}
        if entry.name in _model_of(entry.thing).model_fields:  # `texts: [...]` needs no `use`
            without.append({"$ref": f"#/$defs/data.{entry.name}", "required": [entry.name]})
    names = registry.data.names()
    return {"anyOf": [{"enum": names}, _by_use(names, schemas, {"anyOf": [*without, _WITHOUT]})]}


def _judge(registry: Registry, top: Definitions) -> dict[str, Any]:
    schemas, common = {}, {"use": _ANY, **top.fields(JudgeBudget)}
    for entry in registry.judges:
        own = top.of(f"judge.{entry.name}", entry.thing, common)
        top.definitions[f"judge.{entry.name}"] = _documented(entry.thing, own)
        schemas[entry.name] = {"$ref": f"#/$defs/judge.{entry.name}"}
    names = registry.judges.names()
    return {"anyOf": [{"enum": names}, _by_use(names, schemas, _WITHOUT), {"type": "null"}]}


_FACTS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def _sae(registry: Registry, top: Definitions) -> dict[str, Any]:
    common = {
        "use": _ANY,
        "name": {**_TEXT, "description": "its name in tables"},
        "facts": {**_FACTS, "description": "properties that the checkpoint does not declare"},
        "seed": {"type": "integer", "description": "the seed that it was trained with"},
        MODEL: {"description": "its model, in a suite over several: a short name, or an entry"},
    }
    schemas = {}
    for entry in registry.loaders:
        top.definitions[f"format.{entry.name}"] = _documented(entry.thing, _entry(entry.name, entry.thing, top, common))
        schemas[entry.name] = {"$ref": f"#/$defs/format.{entry.name}"}
    for control in registry.controls:
        if control.name not in schemas and control.thing.per == "sae":
            of = {"description": "the SAE that it is built from", "anyOf": [_TEXT, {"$ref": "#/$defs/sae"}]}
            own = top.of(f"control.{control.name}", control.thing, {**common, "of": of})
            own["required"] = [*own["required"], "of"]
            top.definitions[f"sae.{control.name}"] = _documented(control.thing, own)
            schemas[control.name] = {"$ref": f"#/$defs/sae.{control.name}"}
    registered = {**_TEXT, "description": "a registered SAE, or a glob of several: `saeval ls saes` lists them"}
    of_model = {"properties": {REGISTERED: registered, MODEL: common[MODEL]}, "additionalProperties": False}
    top.definitions["sae"] = _by_use(sorted(schemas), schemas, {**of_model, "required": [REGISTERED]})
    return {"anyOf": [registered, {"$ref": "#/$defs/sae"}]}


def _entry(name: str, loader: type[SAELoader], top: Definitions, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an entry of a format, in any of its forms."""
    if loader.entry is None:
        return {"type": "object"}
    fields: Any = {key: (kind | None, None) for key, kind in loader.expands.items()}
    further = create_model("Further", __config__=ConfigDict(extra="forbid"), **fields)
    whole = top.of(f"format.{name}", loader.entry, {**common, **top.fields(further)})
    if loader.otherwise is None:
        return whole
    return {"anyOf": [whole, top.of(f"format.{name}.otherwise", loader.otherwise, common)]}


def _control(registry: Registry, top: Definitions) -> dict[str, Any]:
    common = {"name": {**_TEXT, "description": "its name in tables"}, "of": _TEXTS}
    schemas, inner = {}, {}
    for entry in registry.controls:
        own = top.of(f"control.{entry.name}", entry.thing, {"use": {"const": entry.name}, **common})
        top.definitions[f"control.{entry.name}"] = _documented(entry.thing, own)
        schemas[entry.name] = {"$ref": f"#/$defs/control.{entry.name}"}
        inner[entry.name] = {"anyOf": [schemas[entry.name], {"type": "null"}]}
    names = registry.controls.names()
    one = {"type": "object", "properties": inner, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"enum": names}, _by_use(names, schemas, one)]}
