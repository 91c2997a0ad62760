"""Ablation of putative absorbers: how much the model's answer, or a later probe, falls without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt64

from saeval.plugin import Encoding, PerRow, Resume, SaevalError, Substitute, at_hooks, hashed, rebound, resuming, torch
from saeval_concepts.mains import SILENT, Mains, WordProbe
from saeval_concepts.words import NOWHERE

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 4096
"""Most tokens in one resumed pass, which limits memory."""
Rows = Int[np.ndarray, "n"]


class Outcome(NamedTuple):
    """What an ablation at a word may change, in logits, for pairs of a row and a parent."""

    known: Bool[np.ndarray, "batch"]
    """Rows that have an outcome."""
    clean: Callable[[Rows, Rows], Float[np.ndarray, "n"]]
    """Rows and parents -> the outcome of the clean pass."""
    right: Callable[[Rows, Rows], Bool[np.ndarray, "n"]]
    """Rows and parents -> is it right in the clean pass?"""
    changed: Callable[[Rows, Rows, Tensor], Float[np.ndarray, "n"]]
    """Rows, parents and the activations of these rows `[n, seq, d]` -> the outcome of the resumed pass."""


@resuming("random")
def answer_outcome(
    resume: Resume,
    logits_at: Callable[..., Tensor],
    clean_final: Tensor,
    answer_places: Int[np.ndarray, "batch"],
    targets: Int[Tensor, "batch seq"],
    word_rows: PerRow,
    random: int,
) -> Outcome:
    """The model's own answer: the logit of its first token minus the mean logit of the fit split's other answers."""
    own = targets.cpu().numpy()[np.arange(len(targets)), np.maximum(answer_places, 0)]
    answers = np.unique(word_rows["answer"][word_rows["answer"] != NOWHERE])
    several = len(answers) > 1
    choices = torch.from_numpy(answers).to(targets.device)

    def logits(final: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logit of the right answer, those of all answers, and which of these are others."""
        values = logits_at(final, rows.tolist(), answer_places[rows].tolist()).double()
        right = torch.from_numpy(own[rows]).to(values.device)
        others = choices[None] != right[:, None]
        return values.gather(1, right[:, None])[:, 0], values[:, choices], others

    def margins(final: Tensor, rows: Rows) -> Float[np.ndarray, "n"]:
        right, every, others = logits(final, rows)
        mean = torch.where(others, every, 0.0).sum(1) / others.sum(1)
        return np.asarray((right - mean).cpu().numpy())

    def best(rows: Rows, parents: Rows) -> Bool[np.ndarray, "n"]:
        right, every, others = logits(clean_final[torch.from_numpy(rows)], rows)
        return np.asarray((torch.where(others, every, -torch.inf).amax(1) < right).cpu().numpy())

    return Outcome(
        (answer_places != NOWHERE) & several,
        lambda rows, parents: margins(clean_final[torch.from_numpy(rows)], rows),
        best,
        lambda rows, parents, x: margins(resume.part(rows.tolist())(x), rows),
    )


def later_place(hook_name: str, hooks: Sequence[str], later_hook: str | None = None) -> list[str]:
    """Return the metric's `later_hook`, if it is set; `SaevalError` for the hook itself."""
    if later_hook == hook_name:
        raise SaevalError(circular(later_hook))
    return [later_hook] if later_hook is not None else []


def circular(later_hook: str) -> str:
    """Return the sentence that refuses a probe at the SAE's own hook."""
    fault = "is the SAE's own hook, where the fall of a probe is what chose the absorber"
    return f"metric 'absorption': 'later_hook: {later_hook}' {fault}; name a later one"


@at_hooks(later_place)
def later_word_probes(word_probes: Mapping[str, tuple[WordProbe, ...]]) -> dict[str, tuple[WordProbe, ...]]:
    """The parents' probes at the metric's `later_hook`, by hook name."""
    return dict(word_probes)


@at_hooks(later_place)
def later_word_activations(word_activations: Mapping[str, Float[Tensor, "batch d"]]) -> dict[str, Tensor]:
    """Activations at the word of each row at the metric's `later_hook`, by hook name."""
    return dict(word_activations)


@resuming("random")
def later_outcome(
    resume: Resume,
    later_word_probes: Mapping[str, tuple[WordProbe, ...]],
    later_word_activations: Mapping[str, Float[Tensor, "batch d"]],
    word_places: Int[np.ndarray, "batch"],
    random: int,
) -> Outcome:
    """The logit of the parent's probe at the metric's `later_hook`, at the same word."""
    ((hook, probes),) = later_word_probes.items()
    clean_activations = later_word_activations[hook]

    def scores(x: Float[Tensor, "n d"], parents: Rows) -> Float[np.ndarray, "n"]:
        values = np.zeros(len(parents))
        for parent in np.unique(parents):
            own = np.flatnonzero(parents == parent)
            values[own] = probes[parent].scores(x[torch.from_numpy(own).to(x.device)]).cpu().numpy()
        return values

    def clean(rows: Rows, parents: Rows) -> Float[np.ndarray, "n"]:
        return scores(clean_activations[torch.from_numpy(rows).to(clean_activations.device)], parents)

    def changed(rows: Rows, parents: Rows, x: Tensor) -> Float[np.ndarray, "n"]:
        reached = resume.part(rows.tolist()).until(x, [hook])
        if hook not in reached:
            raise SaevalError(f"metric 'absorption': the model does not pass 'later_hook: {hook}' after the SAE's hook")
        later = reached[hook]
        return scores(later[torch.arange(len(rows)), torch.from_numpy(word_places[rows])], parents)

    return Outcome(word_places != NOWHERE, clean, lambda rows, parents: clean(rows, parents) > 0, changed)


def _outcome(later_hook: str | None = None) -> str:
    return "answer_outcome" if later_hook is None else "later_outcome"


@rebound(outcome=_outcome)
def word_outcome(outcome: Outcome) -> Outcome:
    """The model's own answer, or the probe at the metric's `later_hook`."""
    return outcome


@dataclass(frozen=True)
class Falls:
    """The falls of the outcome, of rows and parents whose main features are silent and for which an absorber fires."""

    rows: Rows
    parents: Rows
    absorbers: Int[np.ndarray, "n"]
    fall: Float[np.ndarray, "n"]
    """Without the putative absorber."""
    random: Float[np.ndarray, "n random"]
    """Without another active feature, scaled to the same norm; NaN where fewer fire."""


def absorber_falls(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d"],
    token_keys: UInt64[np.ndarray, "batch seq"],
    W_dec: Float[Tensor, "d_sae d"],
    word_acts: Float[Tensor, "batch d_sae"],
    word_activations: Float[Tensor, "batch d"],
    word_labels: Int8[np.ndarray, "batch tasks"],
    word_places: Int[np.ndarray, "batch"],
    word_outcome: Outcome,
    word_probes: tuple[WordProbe, ...],
    main_features: tuple[Mains, ...],
    random: int,
    seed: int,
) -> Falls:
    """The falls of the outcome without the putative absorber of each word, and without others of the same norm.

    A feature j is ablated at the word alone: x − f_j D_j, the SAE's error kept; D_j is what one unit of it writes.
    """
    cases: list[tuple[int, int, list[int]]] = []
    for parent, (probe, mains) in enumerate(zip(word_probes, main_features, strict=True)):
        right = (probe.scores(word_activations) > 0).cpu().numpy() & word_outcome.known & (not probe.lacking)
        for row in np.flatnonzero((word_labels[:, parent] == 1) & right):
            features = _ablated(word_acts[row], mains, int(token_keys[row, word_places[row]]), random, seed)
            if features:
                cases.append((int(row), parent, features))
    rows = np.array([row for row, _, _ in cases], dtype=np.int64)
    parents = np.array([parent for _, parent, _ in cases], dtype=np.int64)
    absorbers = np.array([features[0] for *_, features in cases], dtype=np.int64)
    falls = np.full((len(cases), 1 + random), np.nan)
    if cases:
        written = _Written(sae, encoding, activations, token_keys, W_dec, word_places)
        clean = word_outcome.clean(rows, parents)
        case = np.array([number for number, (*_, features) in enumerate(cases) for _ in features])
        turn = np.array([place for *_, features in cases for place in range(len(features))])
        feature = np.array([feature for *_, features in cases for feature in features])
        vectors = written.of(rows[case], feature)
        norms = vectors.norm(dim=1)
        first = norms[torch.from_numpy(np.flatnonzero(turn == 0))][torch.from_numpy(case)]
        vectors = vectors * (first / torch.where(norms > 0, norms, 1.0))[:, None]
        size = max(1, TOKENS // activations.shape[1])
        for start in range(0, len(case), size):
            part = slice(start, start + size)
            own, vector = rows[case[part]], vectors[part]
            x = activations[torch.from_numpy(own).to(activations.device)].clone()
            x[torch.arange(len(own)), torch.from_numpy(word_places[own])] -= vector.to(x)
            after = word_outcome.changed(own, parents[case[part]], x)
            before = clean[case[part]]
            # A fall of rounding size is none, so that no absorber exceeds others by chance of rounding.
            rounding = 8 * torch.finfo(activations.dtype).eps * np.maximum(np.abs(before), np.abs(after))
            fall = before - after
            falls[case[part], turn[part]] = np.where(np.abs(fall) > rounding, fall, 0.0)
    return Falls(rows, parents, absorbers, falls[:, 0], falls[:, 1:])


def _ablated(acts: Float[Tensor, "d_sae"], mains: Mains, key: int, random: int, seed: int) -> list[int]:
    """Return the putative absorber of a word and random other active features; empty without either."""
    active = acts.nonzero()[:, 0].cpu().numpy()
    values = acts[torch.from_numpy(mains.features).to(acts.device)]
    if bool((values.abs() >= SILENT).any()):
        return []
    counts = np.array([mains.absorbers.get(int(feature), 0) for feature in active])
    if not counts.any():
        return []
    absorber = int(active[counts.argmax()])
    others = active[(active != absorber) & ~np.isin(active, mains.features)]
    if not len(others):
        return []
    order = np.argsort(hashed(seed, "random ablation", np.array([key], np.uint64), others), kind="stable")
    return [absorber, *others[order][:random].tolist()]


class _Written:
    """What features write at the words of a batch: f_j D_j, D_j with the norms and scales of its token."""

    def __init__(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        W_dec: Float[Tensor, "d_sae d"],
        places: Int[np.ndarray, "batch"],
    ) -> None:
        assert encoding is not None
        self._sae, self._encoding = sae.at(token_keys), encoding
        self._here = activations.to(sae.device or activations.device)
        self._acts = encoding.feature_acts
        self._rows = W_dec.to(self._acts)
        self._places = torch.from_numpy(np.maximum(places, 0))
        self._every = torch.arange(len(places))
        self._empty = self._at_words(torch.zeros_like(self._acts))
        whole = self._at_words(self._acts)
        f = self._acts[self._every, self._places]
        rounding = 1e-5 * float(whole.abs().max())
        self._plain = torch.allclose(f @ self._rows, whole - self._empty, rtol=1e-5, atol=rounding)
        """True if D_j is row j of W_dec at every word; else each feature is decoded."""

    def _at_words(self, acts: Float[Tensor, "batch seq d_sae"]) -> Float[Tensor, "batch d"]:
        decoded = self._sae.decode(self._encoding._replace(feature_acts=acts), self._here)
        return decoded[self._every, self._places]

    def of(self, rows: Rows, features: Rows) -> Float[Tensor, "n d"]:
        """Return what each feature writes at the word of its row."""
        row, feature = torch.from_numpy(rows), torch.from_numpy(features)
        place = self._places[row]
        values = self._acts[row, place, feature]
        if self._plain:
            return (values[:, None] * self._rows[feature]).float()
        written = torch.zeros(len(rows), self._empty.shape[1])
        waiting = np.arange(len(rows))
        while len(waiting):  # one feature of each row at a time
            turn = waiting[np.unique(rows[waiting], return_index=True)[1]]
            alone = torch.zeros_like(self._acts)
            alone[row[turn], place[turn], feature[turn]] = values[turn]
            written[turn] = (self._at_words(alone) - self._empty)[row[turn]].float().cpu()
            waiting = np.setdiff1d(waiting, turn)
        return written.to(self._acts.device)
