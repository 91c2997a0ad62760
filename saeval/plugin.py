"""What a plugin is written with, and all that it may import of saeval. Everything else may change without notice.

Names are imported when first used, so that listing plugins loads no library that computes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeval.base import escapes as escapes
    from saeval.base import formatting as formatting
    from saeval.base.archives import damage as damage
    from saeval.base.archives import unpickled as unpickled
    from saeval.base.errors import Problem as Problem
    from saeval.base.errors import SaevalError as SaevalError
    from saeval.base.errors import Undefined as Undefined
    from saeval.base.errors import expanded as expanded
    from saeval.base.errors import lone_surrogate as lone_surrogate
    from saeval.base.errors import looked_up as looked_up
    from saeval.base.errors import quoted as quoted
    from saeval.base.errors import suggestion as suggestion
    from saeval.base.escapes import file_name as file_name
    from saeval.base.escapes import html as html
    from saeval.base.escapes import markdown as markdown
    from saeval.base.escapes import plot as plot
    from saeval.base.fingerprint import digest_of as digest_of
    from saeval.base.fingerprint import remembered as remembered
    from saeval.base.fingerprint import sha256_file as sha256_file
    from saeval.base.formatting import counted as counted
    from saeval.base.formatting import number as number
    from saeval.base.formatting import with_error as with_error
    from saeval.base.lazy_torch import is_tensor as is_tensor
    from saeval.base.lazy_torch import torch as torch
    from saeval.base.memory import out_of_memory as out_of_memory
    from saeval.base.names import matching as matching
    from saeval.base.names import meant as meant
    from saeval.base.parameters import MOST_REPEATS as MOST_REPEATS
    from saeval.base.parameters import ParameterError as ParameterError
    from saeval.base.parameters import Repeats as Repeats
    from saeval.base.parameters import validated as validated
    from saeval.base.parameters import validated_as as validated_as
    from saeval.base.provenance import libraries as libraries
    from saeval.base.run_options import spelled as spelled
    from saeval.base.text_files import MARK as MARK
    from saeval.base.text_files import check_encoding as check_encoding
    from saeval.base.text_files import check_regular as check_regular
    from saeval.base.text_files import json_fault as json_fault
    from saeval.base.text_files import passages as passages
    from saeval.base.text_files import read_json as read_json
    from saeval.base.text_files import read_text as read_text
    from saeval.base.text_files import with_newlines as with_newlines
    from saeval.base.whole_files import ROOM as ROOM
    from saeval.base.whole_files import write as write
    from saeval.interfaces.data import Batch as Batch
    from saeval.interfaces.data import Dataset as Dataset
    from saeval.interfaces.data import Document as Document
    from saeval.interfaces.data import Kind as Kind
    from saeval.interfaces.data import PairBatch as PairBatch
    from saeval.interfaces.data import Source as Source
    from saeval.interfaces.fired import Fired as Fired
    from saeval.interfaces.live_objects import LiveSAE as LiveSAE
    from saeval.interfaces.live_objects import evaluation_mode as evaluation_mode
    from saeval.interfaces.live_objects import unwrapped as unwrapped
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
    from saeval.results.board import counts_of as counts_of
    from saeval.results.board import documents_of as documents_of
    from saeval.results.board import limit_in_words as limit_in_words
    from saeval.results.comparison import Compared as Compared
    from saeval.results.comparison import Comparison as Comparison
    from saeval.results.pages import figure as figure
    from saeval.results.pages import label_log as label_log
    from saeval.results.pages import png as png
    from saeval.results.pages import titled as titled
    from saeval.results.pages import wrapped as wrapped
    from saeval.results.paired_tests import holm as holm
    from saeval.results.report import Report as Report
    from saeval.results.result import Result as Result
    from saeval.stats.estimate import Estimate as Estimate
    from saeval.stats.estimate import Support as Support
    from saeval.stats.estimate import doubts as doubts
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
    from saeval.stats.values import Curve as Curve
    from saeval.stats.values import Notes as Notes
    from saeval.stats.values import Scalar as Scalar
    from saeval.stats.values import Table as Table
    from saeval.stats.values import Value as Value
    from saeval.suite.schema import RegisteredSuite as RegisteredSuite
    from saeval.text.packing import unread as unread
    from saeval.text.tokens import TokenDataset as TokenDataset

_HOMES = {
    # Metrics and what they conclude
    "interfaces.metric": "Metric",
    "stats.estimate": "Estimate Support doubts",
    "stats.evidence": "Evidence Histogram Mean Moments Ratio Sample Spread Stamp",
    "stats.quantiles": "Quantiles",
    "stats.randomness": "hashed normal",
    "stats.values": "Array Better Curve Notes Scalar Table Value",
    # Quantities
    "interfaces.data": "Batch Dataset Document Kind PairBatch Source",
    "interfaces.fired": "Fired",
    "interfaces.quantity": "at_hooks finite fit_split fold gathered paired rebound resuming",
    "interfaces.token_scores": "TokenScores",
    "registry.builtin_quantities": "included token_scores",
    # SAEs, controls, models
    "interfaces.live_objects": "LiveSAE evaluation_mode unwrapped",
    "interfaces.model": "Capture Model ModelAdapter ModelSpec RegisteredModel Resume",
    "interfaces.sae": "RegisteredSAE SAEInfo SAELoader",
    "interfaces.substitute": "Control Encoding Subject Substitute",
    # Reports
    "results.board": "Board Column Entry Row counts_of documents_of limit_in_words",
    "results.comparison": "Compared Comparison",
    "results.pages": "figure label_log png titled wrapped",
    "results.paired_tests": "holm",
    "results.report": "Report",
    "results.result": "Result",
    # Plugins, their parameters, their errors
    "base.errors": "Problem SaevalError Undefined expanded lone_surrogate looked_up quoted suggestion",
    "base.names": "matching meant",
    "base.parameters": "MOST_REPEATS ParameterError Repeats validated validated_as",
    "base.run_options": "spelled",
    "registry.hookspecs": "hookimpl",
    # Files and text
    "base": "escapes formatting",
    "base.archives": "damage unpickled",
    "base.escapes": "file_name html markdown plot",
    "base.fingerprint": "digest_of remembered sha256_file",
    "base.formatting": "counted number with_error",
    "base.lazy_torch": "is_tensor torch",
    "base.memory": "out_of_memory",
    "base.provenance": "libraries",
    "base.text_files": "MARK check_encoding check_regular json_fault passages read_json read_text with_newlines",
    "base.whole_files": "ROOM write",
    # Plans
    "plan.cell": "Cell",
    "plan.plan": "Plan",
    "suite.schema": "RegisteredSuite",
    "text.packing": "unread",
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
