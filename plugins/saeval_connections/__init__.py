"""Connections between the features of two SAEs at different hooks of one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saeval.plugin import Metric, Problem, Report, hookimpl

if TYPE_CHECKING:
    from saeval.plugin import Plan, Subject

_PLACES = (
    "hook_resid_pre", "ln1.", "attn.", "attn", "hook_resid_mid", "hook_mlp_in", "ln2.", "mlp.", "mlp",
    "hook_resid_post",
)  # fmt: skip
"""Parts of hook names in the order in which a block computes them."""


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    from saeval_connections.connections import FeatureConnections  # late: listings of other kinds do not need it
    from saeval_connections.duplicates import NearDuplicates  # late: as above

    return [FeatureConnections, NearDuplicates]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    from saeval_connections import edges, members  # late: as above

    return [
        edges.feature_maps, edges.strongest_edges, members.block_moments, members.earlier_activations,
        members.earlier_activity, members.earlier_decoder, members.earlier_resume, members.fit_activity,
        members.later_activity, members.later_encoder, members.later_input,
    ]  # fmt: skip


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_connections.pages import sections  # late: as above

    return [Report("connections", description="features of a later SAE that earlier features feed", sections=sections)]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Refuse connections of groups that are not an earlier and a later SAE, and near-duplicates of one SAE."""
    problems = []
    for cell in (c for c in plan.cells if "twin" not in c.record):
        group, message = f"metric '{cell.metric.name}': group '{cell.entry.over}'", None
        if cell.metric.name == "feature_connections":
            message = _problem(cell.subjects)
        elif cell.metric.name == "near_duplicates" and len(cell.subjects) < 2:
            message = f"has one SAE, '{cell.subjects[0].name}'; add at least one more to compare"
        if message:
            problems.append(plan.suite.problem(f"{group} {message}", *cell.entry.location))
    return problems


def _problem(subjects: list[Subject]) -> str | None:
    if len(subjects) != 2:
        names = ", ".join(f"'{s.name}'" for s in subjects)
        return f"has {len(subjects)} SAEs ({names}); list two, the earlier one first"
    first, second = subjects
    writes, reads = first.hook_name, second.input_hook or second.hook_name
    if writes == reads or place(writes) < place(reads):
        return None
    hooks = f"'{first.name}' at {writes} is not before '{second.name}' at {reads}"
    return f"lists its SAEs in the wrong order: {hooks}; list the earlier one first"


def place(hook_name: str) -> tuple[int, int]:
    """The place of a canonical hook name in a forward pass: its block, and the part of it.

    Embeddings are before all blocks, other names after them.
    """
    block, _, rest = hook_name.removeprefix("blocks.").partition(".")
    if not block.isdigit():
        return -1 if "embed" in hook_name.replace("unembed", "") else 10**6, 0
    return int(block), next((at for at, part in enumerate(_PLACES) if part in rest), len(_PLACES))
