"""The API for plugins: the only module of saeval that they may import. All others may change without notice.

Names are imported on first use, so that listing plugins does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeval.base import escapes as escapes
    from saeval.base import formatting as formatting
    from saeval.base.archives import archive_damage as archive_damage
    from saeval.base.archives import load_tensors_only as load_tensors_only
    from saeval.base.errors import Problem as Problem
    from saeval.base.errors import SaevalError as SaevalError
    from saeval.base.errors import Undefined as Undefined
    from saeval.base.errors import expand_user as expand_user
    from saeval.base.errors import lone_surrogate as lone_surrogate
    from saeval.base.errors import quoted_value as quoted_value
    from saeval.base.errors import searched_in as searched_in
    from saeval.base.errors import suggestion as suggestion
    from saeval.base.fingerprint import cached as cached
    from saeval.base.fingerprint import digest_of as digest_of
    from saeval.base.fingerprint import sha256_file as sha256_file
    from saeval.base.lazy_torch import is_tensor as is_tensor
    from saeval.base.lazy_torch import torch as torch
    from saeval.base.memory import out_of_memory as out_of_memory
    from saeval.base.names import names_matching as names_matching
    from saeval.base.names import names_matching_any as names_matching_any
    from saeval.base.parameters import MAX_REPEATS as MAX_REPEATS
    from saeval.base.parameters import ParameterError as ParameterError
    from saeval.base.parameters import Repeats as Repeats
    from saeval.base.parameters import validated as validated
    from saeval.base.parameters import validated_as as validated_as
    from saeval.base.provenance import libraries as libraries
    from saeval.base.run_options import dtype_name as dtype_name
    from saeval.base.text_files import BYTE_ORDER_MARK as BYTE_ORDER_MARK
    from saeval.base.text_files import check_encoding as check_encoding
    from saeval.base.text_files import check_regular_file as check_regular_file
    from saeval.base.text_files import json_error as json_error
    from saeval.base.text_files import normalized_newlines as normalized_newlines
    from saeval.base.text_files import read_json as read_json
    from saeval.base.text_files import read_text as read_text
    from saeval.base.text_files import text_passages as text_passages
    from saeval.base.whole_files import FREE_SPACE as FREE_SPACE
    from saeval.base.whole_files import write_whole as write_whole
    from saeval.interfaces.data import Batch as Batch
    from saeval.interfaces.data import DataKind as DataKind
    from saeval.interfaces.data import Dataset as Dataset
    from saeval.interfaces.data import Document as Document
    from saeval.interfaces.data import PairBatch as PairBatch
    from saeval.interfaces.data import Source as Source
    from saeval.interfaces.fired import Fired as Fired
    from saeval.interfaces.live_objects import LiveSAE as LiveSAE
    from saeval.interfaces.live_objects import evaluation_mode as evaluation_mode
    from saeval.interfaces.live_objects import unwrap_module as unwrap_module
    from saeval.interfaces.metric import Metric as Metric
    from saeval.interfaces.model import Capture as Capture
    from saeval.interfaces.model import Model as Model
    from saeval.interfaces.model import ModelAdapter as ModelAdapter
    from saeval.interfaces.model import ModelSpec as ModelSpec
    from saeval.interfaces.model import RegisteredModel as RegisteredModel
    from saeval.interfaces.model import Resume as Resume
    from saeval.interfaces.quantity import at_hooks as at_hooks
    from saeval.interfaces.quantity import finite as finite
    from saeval.interfaces.quantity import fit_split as fit_split
    from saeval.interfaces.quantity import fold as fold
    from saeval.interfaces.quantity import gathered as gathered
    from saeval.interfaces.quantity import paired as paired
    from saeval.interfaces.quantity import planned as planned
    from saeval.interfaces.quantity import rebound as rebound
    from saeval.interfaces.quantity import resuming as resuming
    from saeval.interfaces.sae import RegisteredSAE as RegisteredSAE
    from saeval.interfaces.sae import SAEInfo as SAEInfo
    from saeval.interfaces.sae import SAELoader as SAELoader
    from saeval.interfaces.substitute import Control as Control
    from saeval.interfaces.substitute import Encoding as Encoding
    from saeval.interfaces.substitute import Subject as Subject
    from saeval.interfaces.substitute import Substitute as Substitute
    from saeval.interfaces.token_scores import TokenScores as TokenScores
    from saeval.plan.cell import Cell as Cell
    from saeval.plan.plan import Plan as Plan
    from saeval.registry.builtin_quantities import included as included
    from saeval.registry.builtin_quantities import token_scores as token_scores
    from saeval.registry.hookspecs import hookimpl as hookimpl
    from saeval.results.board import Board as Board
    from saeval.results.board import Column as Column
    from saeval.results.board import Entry as Entry
    from saeval.results.board import Row as Row
    from saeval.results.board import document_count as document_count
    from saeval.results.board import limit_notice as limit_notice
    from saeval.results.board import size_in_words as size_in_words
    from saeval.results.comparison import Compared as Compared
    from saeval.results.comparison import Comparison as Comparison
    from saeval.results.pages import figure as figure
    from saeval.results.pages import label_log_axis as label_log_axis
    from saeval.results.pages import png as png
    from saeval.results.pages import set_title as set_title
    from saeval.results.pages import wrap_title as wrap_title
    from saeval.results.paired_tests import holm as holm
    from saeval.results.report import Report as Report
    from saeval.results.result import Result as Result
    from saeval.stats.estimate import Estimate as Estimate
    from saeval.stats.estimate import Support as Support
    from saeval.stats.estimate import reliability_warnings as reliability_warnings
    from saeval.stats.evidence import Ever as Ever
    from saeval.stats.evidence import Evidence as Evidence
    from saeval.stats.evidence import Histogram as Histogram
    from saeval.stats.evidence import Mean as Mean
    from saeval.stats.evidence import Moments as Moments
    from saeval.stats.evidence import Ratio as Ratio
    from saeval.stats.evidence import Sample as Sample
    from saeval.stats.evidence import Spread as Spread
    from saeval.stats.evidence import Stamp as Stamp
    from saeval.stats.quantiles import Quantiles as Quantiles
    from saeval.stats.randomness import hashed as hashed
    from saeval.stats.randomness import normal as normal
    from saeval.stats.values import Array as Array
    from saeval.stats.values import Better as Better
    from saeval.stats.values import Comparable as Comparable
    from saeval.stats.values import Curve as Curve
    from saeval.stats.values import Notes as Notes
    from saeval.stats.values import Null as Null
    from saeval.stats.values import Scalar as Scalar
    from saeval.stats.values import Table as Table
    from saeval.stats.values import Value as Value
    from saeval.suite.schema import RegisteredSuite as RegisteredSuite
    from saeval.text.packing import unread_special as unread_special
    from saeval.text.tokens import TokenDataset as TokenDataset

_HOMES = {
    # Metrics and what they conclude
    "interfaces.metric": "Metric",
    "stats.estimate": "Estimate Support reliability_warnings",
    "stats.evidence": "Ever Evidence Histogram Mean Moments Ratio Sample Spread Stamp",
    "stats.quantiles": "Quantiles",
    "stats.randomness": "hashed normal",
    "stats.values": "Array Better Comparable Curve Notes Null Scalar Table Value",
    # Quantities
    "interfaces.data": "Batch Dataset Document DataKind PairBatch Source",
    "interfaces.fired": "Fired",
    "interfaces.quantity": "at_hooks finite fit_split fold gathered paired planned rebound resuming",
    "interfaces.token_scores": "TokenScores",
    "registry.builtin_quantities": "included token_scores",
    # SAEs, controls, models
    "interfaces.live_objects": "LiveSAE evaluation_mode unwrap_module",
    "interfaces.model": "Capture Model ModelAdapter ModelSpec RegisteredModel Resume",
    "interfaces.sae": "RegisteredSAE SAEInfo SAELoader",
    "interfaces.substitute": "Control Encoding Subject Substitute",
    # Reports
    "results.board": "Board Column Entry Row size_in_words document_count limit_notice",
    "results.comparison": "Compared Comparison",
    "results.pages": "figure label_log_axis png set_title wrap_title",
    "results.paired_tests": "holm",
    "results.report": "Report",
    "results.result": "Result",
    # Plugins, their parameters, their errors
    "base.errors": "Problem SaevalError Undefined expand_user lone_surrogate searched_in quoted_value suggestion",
    "base.names": "names_matching names_matching_any",
    "base.parameters": "MAX_REPEATS ParameterError Repeats validated validated_as",
    "base.run_options": "dtype_name",
    "registry.hookspecs": "hookimpl",
    # Files and text
    "base": "escapes formatting",
    "base.archives": "archive_damage load_tensors_only",
    "base.fingerprint": "digest_of cached sha256_file",
    "base.lazy_torch": "is_tensor torch",
    "base.memory": "out_of_memory",
    "base.provenance": "libraries",
    "base.text_files": "BYTE_ORDER_MARK check_encoding check_regular_file json_error text_passages "
    "read_json read_text normalized_newlines",
    "base.whole_files": "FREE_SPACE write_whole",
    # Plans
    "plan.cell": "Cell",
    "plan.plan": "Plan",
    "suite.schema": "RegisteredSuite",
    "text.packing": "unread_special",
    "text.tokens": "TokenDataset",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'saeval.plugin' has no attribute '{name}'")
    return getattr(import_module(f"saeval.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
