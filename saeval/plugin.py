"""The API for plugins: the only module of saeval that they may import. All others may change without notice.

Names are imported on first use, so that listing plugins does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.base.lazy_names import on_first_use

if TYPE_CHECKING:
    from saeval.base import escapes, formatting
    from saeval.base.archives import archive_damage, load_tensors_only
    from saeval.base.console import terminal_width
    from saeval.base.errors import (
        Problem,
        SaevalError,
        Undefined,
        expand_user,
        lone_surrogate,
        quoted_value,
        searched_in,
        suggestion,
    )
    from saeval.base.fingerprint import cached, digest_of, sha256_file
    from saeval.base.lazy_torch import is_tensor, torch
    from saeval.base.memory import out_of_memory
    from saeval.base.names import names_matching, names_matching_any, without_repetition
    from saeval.base.parameters import MAX_REPEATS, ParameterError, Repeats, at_key, validated, validated_as
    from saeval.base.provenance import libraries
    from saeval.base.run_options import dtype_name
    from saeval.base.text_files import (
        BYTE_ORDER_MARK,
        check_encoding,
        check_regular_file,
        json_error,
        normalized_newlines,
        read_json,
        read_text,
        text_passages,
    )
    from saeval.base.whole_files import FREE_SPACE, write_whole
    from saeval.cli.tables import print_boards, table_options
    from saeval.engine.worker import WorkerSession
    from saeval.interfaces.data import Batch, DataKind, Dataset, Document, PairBatch, Source
    from saeval.interfaces.engine import Needs, Worker, WorkerEngine
    from saeval.interfaces.fired import Fired
    from saeval.interfaces.judge import Answers, Cost, Interview, Judge, Prompt, Reply
    from saeval.interfaces.live_objects import LiveSAE, evaluation_mode, unwrap_module
    from saeval.interfaces.metric import Metric
    from saeval.interfaces.model import Capture, Model, ModelAdapter, ModelSpec, RegisteredModel, Resume
    from saeval.interfaces.quantity import (
        asking,
        at_hooks,
        finite,
        fit_split,
        fold,
        gathered,
        paired,
        planned,
        rebound,
        resuming,
    )
    from saeval.interfaces.sae import RegisteredSAE, SAEInfo, SAELoader
    from saeval.interfaces.substitute import Control, Encoding, Subject, Substitute
    from saeval.interfaces.token_scores import TokenScores
    from saeval.plan.cell import Cell
    from saeval.plan.plan import Plan
    from saeval.registry.builtin_quantities import included, token_scores
    from saeval.registry.hookspecs import hookimpl
    from saeval.results import chart_files, charts, families
    from saeval.results.board import Board, Column, Entry, Row, document_count, limit_notice, size_in_words
    from saeval.results.comparison import Compared, Comparison
    from saeval.results.folder_comparison import FolderComparison, Matched
    from saeval.results.leaderboard import boards
    from saeval.results.notebook import section_html
    from saeval.results.paired_tests import holm
    from saeval.results.report import Report
    from saeval.results.result import Result
    from saeval.results.sections import Chart, Passage, Section
    from saeval.results.sections import Table as PageTable
    from saeval.results.store import stored_results
    from saeval.results.verdicts import Verdict, untested_on, verdicts, verdicts_in_words, verdicts_on
    from saeval.stats.estimate import Estimate, Support, reliability_warnings
    from saeval.stats.evidence import Ever, Evidence, Histogram, Mean, Moments, Ratio, Sample, Spread, Stamp
    from saeval.stats.per_row import PerRow
    from saeval.stats.quantiles import Quantiles
    from saeval.stats.randomness import hashed, normal
    from saeval.stats.values import Array, Better, Comparable, Curve, Notes, Null, Scalar, Table, Value
    from saeval.suite.schema import RegisteredSuite
    from saeval.text.packing import unread_special
    from saeval.text.spelling import Spelling, whole_characters
    from saeval.text.tokens import TokenDataset

__all__ = [
    "Answers", "Array", "BYTE_ORDER_MARK", "Batch", "Better", "Board", "Capture", "Cell", "Chart", "Column",
    "Comparable", "Compared", "Comparison", "Control", "Cost", "Curve", "DataKind", "Dataset", "Document", "Encoding",
    "Entry", "Estimate", "Ever", "Evidence", "FREE_SPACE", "Fired", "FolderComparison", "Histogram", "Interview",
    "Judge", "LiveSAE", "MAX_REPEATS", "Matched", "Mean", "Metric", "Model", "ModelAdapter", "ModelSpec", "Moments",
    "Needs", "Notes", "Null", "PageTable", "PairBatch", "ParameterError", "Passage", "PerRow", "Plan", "Problem",
    "Prompt", "Quantiles", "Ratio", "RegisteredModel", "RegisteredSAE", "RegisteredSuite", "Repeats", "Reply",
    "Report", "Result", "Resume", "Row", "SAEInfo", "SAELoader", "SaevalError", "Sample", "Scalar", "Section",
    "Source", "Spelling", "Spread", "Stamp", "Subject", "Substitute", "Support", "Table", "TokenDataset",
    "TokenScores", "Undefined", "Value", "Verdict", "Worker", "WorkerEngine", "WorkerSession", "archive_damage",
    "asking", "at_hooks", "at_key", "boards", "cached", "chart_files", "charts", "check_encoding",
    "check_regular_file", "digest_of", "document_count", "dtype_name", "escapes", "evaluation_mode", "expand_user",
    "families", "finite", "fit_split", "fold", "formatting", "gathered", "hashed", "holm", "hookimpl", "included",
    "is_tensor", "json_error", "libraries", "limit_notice", "load_tensors_only", "lone_surrogate", "names_matching",
    "names_matching_any", "normal", "normalized_newlines", "out_of_memory", "paired", "planned", "print_boards",
    "quoted_value", "read_json", "read_text", "rebound", "reliability_warnings", "resuming", "searched_in",
    "section_html", "sha256_file", "size_in_words", "stored_results", "suggestion", "table_options", "terminal_width",
    "text_passages", "token_scores", "torch", "unread_special", "untested_on", "unwrap_module", "validated",
    "validated_as", "verdicts", "verdicts_in_words", "verdicts_on", "whole_characters", "without_repetition",
    "write_whole",
]  # fmt: skip
__getattr__, __dir__ = on_first_use(__name__)
