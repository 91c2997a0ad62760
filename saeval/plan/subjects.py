"""The `saes:`, `hooks:` and `controls:` of a suite as subjects: names are looked up, but no weights loaded."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from saeval.base.errors import Problem, SaevalError, UnknownNameError, blamed, quoted_value, searched_in, suggestion
from saeval.base.fingerprint import digest_of
from saeval.base.identity import Origin, code_identity
from saeval.base.names import WILDCARDS, names_matching, names_matching_any, unfit
from saeval.base.parameters import MAX_REPEATS, Location, ParameterError, parameter_names, validated
from saeval.base.run_options import RunOptions
from saeval.interfaces.contents import freeze
from saeval.interfaces.live_objects import LiveKeys, LiveSAE
from saeval.interfaces.model import ModelSpec
from saeval.interfaces.sae import SAEInfo
from saeval.interfaces.substitute import Control, Subject
from saeval.plan.cell import subject_record
from saeval.registry.format_recognition import by_keys, paths, suggested, written
from saeval.registry.registry import Registry
from saeval.results.store import finite
from saeval.suite.schema import Suite

_IN_TWIN = MAX_REPEATS
_AS_SAE = _IN_TWIN + 2**32
"""The first draws of controls in twins, and of controls as SAEs: none is a draw of a row of `controls:`."""


class _NoParentError(SaevalError):
    """No SAE of the suite is one that a control could be built from."""


@dataclass(eq=False)
class Subjects:
    """Turns suite entries into `Subject`s; errors are added to `problems` with their place."""

    suite: Suite
    registry: Registry
    spec: ModelSpec | None
    problems: list[Problem]
    options: RunOptions
    places: dict[str, Location] = field(default_factory=dict)
    """Place of each SAE in the suite, for problems found later."""
    _ablations: dict[tuple[str, str], Subject] = field(default_factory=dict)

    def saes(self) -> list[Subject]:
        """Return the SAEs of the suite in its order, with globs expanded."""
        by_name: dict[str, Subject] = {}
        for index, entry in enumerate(self.suite.body.saes):
            place: Location = ("saes", index)
            try:
                subjects = self._registered(entry) if isinstance(entry, str) else self._described(entry, by_name)
            except SaevalError as error:
                if isinstance(entry, dict) and isinstance(error, UnknownNameError):
                    place = (*place, "use")
                self.problems += self.suite.problems(error, *place)
                continue
            for subject in subjects:
                if reason := unfit(subject.name):
                    remedy = "set a different 'name:', or rename its folder"
                    message = f"the name of an SAE cannot be shown: {reason}; {remedy}"
                    self.problems.append(self.suite.problem(message, *place))
                    break
                if subject.name in by_name and isinstance(entry, str):
                    continue  # two globs may overlap
                if subject.name in by_name:
                    message = f"two SAEs are named '{subject.name}'; set a different 'name:'"
                    self.problems.append(self.suite.problem(message, *place))
                by_name[subject.name] = subject
                self.places[subject.name] = place
        for name, live in self.suite.live.items():
            if reason := unfit(name):
                self.problems.append(Problem(f"the name of an SAE cannot be shown: {reason}"))
            by_name[name] = self._live(name, live)
        return list(by_name.values())

    def _registered(self, pattern: str) -> list[Subject]:
        names = self.registry.saes.names()
        if not (matches := names_matching(pattern, names)):
            raise SaevalError(self._unregistered(pattern, names))
        saes = [(name, self.registry.saes[name]) for name in matches]
        return [subject for name, sae in saes for subject in self._expanded(name, sae.loader, sae.reference)]

    def _unregistered(self, pattern: str, names: list[str]) -> str:
        """Return the error message for a pattern that matches no registered SAE; it may be a path without a format."""
        globs = WILDCARDS & set(pattern)
        fault = f"no registered SAE matches '{pattern}'" if globs else f"unknown SAE '{pattern}'"
        if paths(pattern):
            formats = suggested(pattern, self.registry)
            entry = written({"use": "FORMAT", "path": pattern})
            return f"{fault}, which is a path{formats or f'; write {entry}, with a format of `saeval ls formats`'}"
        no_path = f"; nor is there such a path{searched_in(pattern)}; `saeval ls saes` lists the registered ones"
        return f"{fault}{suggestion(pattern, names, no_path)}"

    def _described(self, entry: Mapping[str, Any], earlier: Mapping[str, Subject]) -> list[Subject]:
        """Return the SAEs of an entry with `use:`; `earlier` are those of the entries above it, by name."""
        reference = dict(entry)
        use, name, facts = _word(reference, "use"), _word(reference, "name"), _facts(reference)
        if use is None:
            formats = ", ".join(self.registry.loaders.names())
            meant = by_keys(reference, self.registry)
            near = f"; its keys are those of '{meant[0]}'" if meant else suggested(reference.get("path"), self.registry)
            raise SaevalError(f"an SAE entry needs 'use', one of: {formats}{near}")
        if use in self.registry.controls and use not in self.registry.loaders:
            subjects = self._drawn(use, name, reference, earlier)
        else:
            subjects = self._expanded(name, use, reference)
        return [_declared(subject, facts) for subject in subjects]

    def _drawn(
        self, use: str, name: str | None, given: dict[str, Any], earlier: Mapping[str, Subject]
    ) -> list[Subject]:
        """Return each draw of a control that is built from an SAE as an SAE with a seed of its own."""
        of = given.pop("of", None)
        if not isinstance(of, str | dict):
            got = "" if of is None else f", got {quoted_value(of)}"
            raise SaevalError(f"control '{use}' as an SAE needs 'of', the SAE that it is built from{got}")
        control, params, copies = self._configured(use, given, "saes", "sae")
        if isinstance(of, str):
            parents = [earlier[known] for known in names_matching(of, earlier)] or self._registered(of)
        else:
            parents = self._described(of, earlier)
        saes = []
        for parent, copy in itertools.product(parents, range(copies)):
            drawn = self._control(control, params, parent.hook_name, parent, _AS_SAE + copy, use, parent.asked_hook)
            if same := next((known for known in earlier.values() if known.key == _key_as_sae(drawn)), None):
                raise SaevalError(f"control '{use}': this draw is already the SAE '{same.name}'; set another 'seed:'")
            parts = [name or use, *([parent.name] if len(parents) > 1 else []), *([str(copy)] if copies > 1 else [])]
            facts = {"format": use, "architecture": f"the control {use}", "of": parent.name, **params}
            if isinstance(seed := params.get("seed", 0), int):
                facts["seed"] = MAX_REPEATS * seed + copy
            saes.append(replace(drawn, name="/".join(parts), kind="sae", key=_key_as_sae(drawn), facts=facts,
                                d_out=parent.d_out, fetch=parent.fetch))  # fmt: skip
        return saes

    def _expanded(self, name: str | None, use: str, reference: Mapping[str, Any]) -> list[Subject]:
        entry = self.registry.loaders.entry(use)
        with self._read_as(use, reference, entry.origin):
            loader = entry.thing()
            seed = reference.get("seed")
            if loader.entry is not None and "seed" not in loader.entry.model_fields:
                reference = {key: value for key, value in reference.items() if key != "seed"}
            if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
                raise SaevalError(f"'seed' is the whole number that the SAE was trained with, got {seed!r}")
            parts = {part: dict(expanded) for part, expanded in loader.expand(reference).items()}
            if name is None:
                name = str(_name(reference.get("path"), set(parts) != {""}) or loader.label(reference))
        # Only now, since `expand` may fill in a template.
        hooks = {part: _word(expanded, "hook_name") for part, expanded in parts.items()}
        saes = [self._load_later(f"{name}/{p}" if p else name, use, part, hooks[p]) for p, part in parts.items()]
        return saes if seed is None else [replace(s, facts={**(s.facts or {}), "seed": seed}) for s in saes]

    @contextmanager
    def _read_as(self, use: str, reference: Mapping[str, Any], origin: object) -> Iterator[None]:
        """Context for a loader's calls: an error also names the format that the files look like, if it is another.

        It does not if the entry's keys mean a format, or if the error is about a value of the entry.
        """
        try:
            with blamed(f"SAE format '{use}'", origin):
                yield
        except SaevalError as error:
            faults = error.faults if isinstance(error, ParameterError) else []
            if "repo" in reference or any(fault.kind == "wrong" for fault in faults):
                raise
            meant = by_keys(reference, self.registry)
            if use in meant:
                raise
            if (
                near := f"; its keys are those of '{meant[0]}'"
                if meant
                else suggested(reference.get("path"), self.registry, use)
            ):
                raise (
                    error.followed_by(near) if isinstance(error, ParameterError) else SaevalError(f"{error}{near}")
                ) from error
            raise

    def _load_later(self, name: str, use: str, reference: dict[str, Any], hook_name: str | None = None) -> Subject:
        entry = self.registry.loaders.entry(use)
        with self._read_as(use, reference, entry.origin):
            loader = entry.thing()
            info = loader.info(reference)
            if not isinstance(info, SAEInfo):
                raise TypeError(f"'info' returned {type(info).__name__}, which is not an SAEInfo")
            checkpoint_facts = finite(dict(info.facts))
        hook_name = hook_name or info.hook_name
        if not hook_name:
            raise SaevalError(f"{name}: the checkpoint does not say its hook; add 'hook_name: blocks.N.hook_resid_pre'")
        asked = self._canonical(hook_name) or hook_name
        hook_name, input_hook = self._site(hook_name) or hook_name, self._site(info.input_hook)

        def load() -> Any:
            import torch  # late: planning needs no torch

            device = self.options.sae_device or self.options.device
            return loader.load(reference, device, getattr(torch, self.options.sae_dtype))

        facts = {"format": use, "architecture": info.architecture, "sha256": info.sha256, **checkpoint_facts}
        if info.hook_name:
            same = self._site(info.hook_name) == hook_name
            facts["declared_hook"] = asked if same else self._canonical(info.hook_name)
        code = code_identity(entry.thing, entry.origin)
        without_path = {name: value for name, value in reference.items() if name != "path"}  # it changes no number
        words = ["sae", info.sha256, info.architecture, use, code, hook_name, input_hook, self.options.sae_dtype]
        key = digest_of([*words, without_path])
        return Subject(
            name, hook_name, key, load,
            input_hook=input_hook, asked_hook=asked if asked != hook_name else None,
            d_in=info.d_in, d_sae=info.d_sae, d_out=info.d_out, facts=facts,
            fetch=lambda: loader.fetch(reference), origin=entry.origin,
        )  # fmt: skip

    def _canonical(self, hook_name: str | None) -> str | None:
        return self.spec.canonical(hook_name) if self.spec and hook_name else hook_name

    def _site(self, hook_name: str | None) -> str | None:
        return self.spec.site(hook_name) if self.spec and hook_name else hook_name

    def _live(self, name: str, live: LiveSAE) -> Subject:
        asked = self._canonical(live.hook_name) or live.hook_name
        hook_name, input_hook = self._site(live.hook_name) or live.hook_name, self._site(live.input_hook)
        keys = self.suite.live_keys = self.suite.live_keys or LiveKeys.of_call(None)
        key = keys.of("sae", name, hook_name, input_hook, live.shapes())
        facts: dict[str, Any] = {"format": "live", "architecture": type(live.module).__qualname__}
        facts |= {"live_key": keys.seed} if keys.named else {}
        facts |= {"seed": live.seed} if live.seed is not None else {}
        return Subject(
            name, hook_name, key, lambda: live,
            input_hook=input_hook, asked_hook=asked if asked != hook_name else None,
            d_in=live.d_in or None, d_sae=live.d_sae, d_out=live.d_out, facts=facts, origin=Origin("live", name),
        )  # fmt: skip

    def hooks(self) -> list[Subject]:
        """Return the places of the suite's `hooks:`, in the model's order, one per tensor."""
        patterns = self.suite.body.hooks
        if not patterns or self.spec is None:
            if patterns and self.suite.body.model is None:
                self.problems.append(self.suite.problem("'hooks' are those of a model; add 'model:'", "hooks"))
            return []
        try:
            widths = self.spec.hooks()
        except SaevalError as error:
            self.problems += self.suite.problems(error, "hooks")
            return []
        places: dict[str, Location] = {}
        for index, pattern in enumerate(patterns):
            matches = names_matching(pattern, widths) or names_matching(self.spec.canonical(pattern), widths)
            if not matches:
                general = {re.sub(r"\.\d+\.", ".*.", hook_name) for hook_name in widths}
                near = suggestion(pattern, general if WILDCARDS & set(pattern) else widths)
                message = f"model '{self.spec.name}' has no hook '{pattern}'{near[:400]}"
                self.problems.append(self.suite.problem(message, "hooks", index))
            for hook_name in matches:
                places.setdefault(hook_name, ("hooks", index))
        by_site: dict[str, Subject] = {}
        for hook_name in (hook_name for hook_name in widths if hook_name in places):
            site = self.spec.site(hook_name)
            asked, width = hook_name if hook_name != site else None, widths[hook_name]
            subject = Subject(
                hook_name, site, digest_of(["hook", site]), _nothing, kind="hook", asked_hook=asked, d_in=width
            )
            self.places[by_site.setdefault(site, subject).name] = places[hook_name]
        return list(by_site.values())

    def controls(self, saes: list[Subject], hooks: list[Subject]) -> list[Subject]:
        """Return the controls of the suite: one per hook of an SAE or of `hooks`, or one per SAE, times its copies."""
        subjects: list[Subject] = []
        for index, entry in enumerate(self.suite.body.controls):
            place: Location = ("controls", index)
            given = {"use": entry} if isinstance(entry, str) else dict(entry)
            if len(given) == 1 and "use" not in given:  # `norm_noise: {share: 0.2}`, written like a metric
                ((kind, parameters),) = given.items()
                if kind in self.registry.controls and not isinstance(parameters, dict | None):
                    message = f"the parameters of '{kind}' are a mapping, got {parameters!r}"
                    self.problems.append(self.suite.problem(message, *place, kind))
                    continue
                if parameters is None or (isinstance(parameters, dict) and "use" not in parameters):
                    given, place = {"use": kind, **(parameters or {})}, (*place, kind)
            try:
                use, name, of = _word(given, "use"), _word(given, "name"), given.pop("of", None)
                if name is not None and (reason := unfit(name)):
                    raise SaevalError(f"the name of a control cannot be shown: {reason}")
                if use is None:
                    raise SaevalError(f"a control needs 'use', one of: {', '.join(self.registry.controls.names())}")
                control, params, copies = self._configured(use, given)
                parents = _chosen(saes, of, use)
                if control.per == "sae" and hooks and not parents:
                    usable = ", ".join(e.name for e in self.registry.controls if e.thing.per == "hook")
                    raise _NoParentError(f"control '{use}' is built from an SAE, and the suite has none; use {usable}")
            except _NoParentError as error:
                self.problems += self.suite.lacks(str(error), *place)
                continue
            except SaevalError as error:
                self.problems += self.suite.problems(error, *place)
                continue
            by_site: dict[str, Subject] = {}
            for at in [*parents, *(hooks if of is None else [])]:
                by_site.setdefault(at.hook_name, at)
            for at in parents if control.per == "sae" else by_site.values():
                parent = at if control.per == "sae" else None
                for copy in range(copies):
                    subject = self._control(control, params, at.hook_name, parent, copy, name or use, at.asked_hook)
                    if any((s.name, s.hook_name) == (subject.name, subject.hook_name) for s in subjects):
                        message = f"two controls are named '{subject.name}'; set a different 'name:'"
                        self.problems.append(self.suite.problem(message, *place))
                        break
                    subjects.append(subject)
        return subjects

    def ablation(self, name: str, hook_name: str) -> Subject:
        """Return the control that an `ablation:` parameter names, at a hook: the same subject as its row."""
        if (name, hook_name) not in self._ablations:
            control, params, _ = self._configured(name, {}, "ablation", "hook")
            self._ablations[name, hook_name] = self._control(control, params, hook_name, None, 0, name)
        return self._ablations[name, hook_name]

    def twin(self, group: Sequence[Subject], name: str) -> list[Subject]:
        """Return a group's twin: the control `name` of each member, drawn independently of all others."""
        control, params, _ = self._configured(name, {}, "controls", "sae")
        twins = []
        for sae in group:
            draw = _IN_TWIN + int(digest_of(["twin", sae.name, sae.hook_name])[:8], 16)
            twin = self._control(control, params, sae.hook_name, sae, draw, name, sae.asked_hook)
            twins.append(replace(twin, name=f"{name}({sae.name})#twin"))
        return twins

    def _configured(
        self, name: str, given: Mapping[str, Any], key: str = "", per: str = ""
    ) -> tuple[type[Control], dict[str, Any], int]:
        """Return a control, all its parameters and its number of copies.

        `SaevalError`, which begins with the suite's `key`, unless it is built per hook or SAE as `per` says.
        """
        control, origin = self.registry.controls[name], self.registry.controls.entry(name).origin
        if per and control.per != per:
            usable = ", ".join(e.name for e in self.registry.controls if e.thing.per == per)
            built = "is built from an SAE" if per == "hook" else "is not built from an SAE"
            raise SaevalError(f"{key}: '{name}' {built}; use one of {usable}")
        try:
            params = validated(control, given, f"control '{name}'")
        except ParameterError as error:
            if given or not key:
                raise
            raise SaevalError(f"{key}: {error}, so it cannot be named without parameters") from None
        try:
            with blamed(f"control '{name}'", origin, values=True):
                copies = control(**params).copies
        except ValueError as error:
            raise SaevalError(str(error)) from None
        if not isinstance(copies, int) or isinstance(copies, bool) or not 1 <= copies <= MAX_REPEATS:
            fault = f"'copies' is {quoted_value(copies)}; it must be a whole number from 1 to {MAX_REPEATS}"
            raise SaevalError(f"control '{name}' (plugin {origin}): {fault}")
        return control, params, copies

    def _control(
        self, cls: type[Control], params: Mapping[str, Any], hook_name: str, parent: Subject | None, copy: int,
        name: str, asked_hook: str | None = None,
    ) -> Subject:  # fmt: skip
        origin = self.registry.controls.entry(cls.name).origin
        with blamed(f"control '{cls.name}'", origin):
            control = cls(**params)
            freeze(control)
            needs = tuple(parameter_names(control.build))
        constants = {**params, "copy": copy}
        words = ["control", cls.name, cls.version, constants, parent.key if parent else hook_name]
        key = digest_of([*words, code_identity(cls, origin)])
        shown = f"{name}({parent.name})" if parent else name
        return Subject(
            shown if copy == 0 else f"{shown}#{copy}", hook_name, key, control.build,
            needs=needs, build_params=constants, parent=parent,
            kind="control", input_hook=parent.input_hook if parent else None, asked_hook=asked_hook,
            d_in=parent.d_in if parent else None, d_sae=parent.d_sae if parent else None,
            facts={**_built_from(name, parent), "copy": copy, **params}, origin=origin,
            operations=functools.partial(control.operations, parent),
        )  # fmt: skip

    def check_hooks(self, subjects: list[Subject], context: int | None = None, width: int | None = None) -> None:
        """Add a problem for each hook that the model lacks and each width that does not fit, by config and headers.

        With a `context`, live SAEs are also tried on one made-up row of that length. `width` is that of activations
        that the data supply, which then stand for those at every hook.
        """
        if width is not None:
            self._check_width(subjects, width)
            return
        if self.spec is None:
            return
        hooks = self.spec.hooks()
        for subject in subjects:
            if subject.kind != "sae":
                continue
            place = self.places.get(subject.name, ("saes",))
            reads = subject.input_hook or subject.hook_name
            writes = subject.d_out or subject.d_in
            for hook_name, width, does in ((reads, subject.d_in, "takes"), (subject.hook_name, writes, "returns")):
                message = self._misfit(subject.name, hook_name, width, does, hooks)
                if message:
                    key = "hook_name" if hook_name == subject.hook_name else "input_hook"
                    self.problems.append(self.suite.problem(message, *place, key))  # of the entry if it lacks the key
                    break
            else:
                live = self.suite.live.get(subject.name)
                if live is not None and context is not None:
                    widths = hooks[reads], hooks[subject.hook_name]
                    if message := live.probe(context, *widths, self.options.device):
                        self.problems.append(self.suite.problem(message, *place))

    def _check_width(self, subjects: list[Subject], width: int) -> None:
        for subject in subjects:
            for own, does in ((subject.d_in, "takes"), (subject.d_out or subject.d_in, "returns")):
                if subject.kind == "sae" and own is not None and own != width:
                    numbers = f"{own} {'inputs' if does == 'takes' else 'outputs'}"
                    message = f"{subject.name}: the SAE {does} {numbers}, but the data's activations are {width} wide"
                    place = self.places.get(subject.name, ("saes",))
                    self.problems.append(self.suite.problem(f"{message}; check the SAE or the data", *place))
                    break

    def _misfit(self, name: str, hook_name: str, width: int | None, does: str, hooks: Mapping[str, int]) -> str | None:
        assert self.spec is not None
        if hook_name not in hooks:
            near = suggestion(hook_name, hooks)
            return f"{name}: model '{self.spec.name}' has no hook '{hook_name}'{near[:400]}"
        if width is not None and width != hooks[hook_name]:
            size = f"{width} {'inputs' if does == 'takes' else 'outputs'}"
            hook = f"{hook_name} of model '{self.spec.name}' is {hooks[hook_name]} wide"
            return f"{name}: the SAE {does} {size}, but {hook}; check the hook or the model"
        return None


def _key_as_sae(drawn: Subject) -> str:
    return digest_of(["sae", drawn.key])


def _nothing() -> Any:
    """The `load` of a hook without an SAE."""
    raise SaevalError("no SAE stands at this hook")


def _built_from(control: str, parent: Subject | None) -> dict[str, Any]:
    """Return the facts about a control's origin; the key tells SAEs of different runs with one name apart."""
    return {"control": control, "of": parent.name, "of_key": parent.key} if parent else {"control": control, "of": None}


def _word(entry: dict[str, Any], key: str) -> str | None:
    """Remove a name from an entry and return it; `SaevalError` if it is not text."""
    value = entry.pop(key, None)
    if value is not None and not isinstance(value, str):
        raise SaevalError(f"'{key}' is a name, got {value!r}")
    return value


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    """Remove the declared properties from an entry and return them; `SaevalError` if they are not names and values."""
    facts = entry.pop("facts", {})
    plain = isinstance(facts, dict) and not any(
        not isinstance(name, str) or not isinstance(value, str | int | float) for name, value in facts.items()
    )
    if not plain:
        raise SaevalError(f"'facts' declares properties, as in {{training_tokens: 2000000}}, got {quoted_value(facts)}")
    return finite(facts)  # type: ignore[no-any-return]


def _declared(subject: Subject, facts: Mapping[str, Any]) -> Subject:
    """Return the SAE with the properties that the suite declares; they change no number, and so no key."""
    own = {**subject_record(subject), "control": None, "of": None, "copy": None}
    if twice := [name for name in facts if name in own]:
        raise SaevalError(f"'facts' declares '{twice[0]}', which {subject.name} already has: {own[twice[0]]!r}")
    return replace(subject, facts={**(subject.facts or {}), **facts})


def _name(path: Any, several: bool) -> str:
    """Return the last part of a path; for a path of several files, the last part before its globs."""
    parts = [part for part in re.split(r"[/\\]" if os.name == "nt" else "/", str(path or "")) if part]
    if several:
        parts = list(itertools.takewhile(lambda part: not WILDCARDS & set(part), parts))
    return parts[-1] if parts else ""


def _chosen(saes: list[Subject], of: Any, control: str) -> list[Subject]:
    """Return the SAEs that a control's `of:` names; all SAEs without it."""
    if of is None:
        return saes
    patterns = list(of) if isinstance(of, list) else [of]
    names = set(names_matching_any(map(str, patterns), [s.name for s in saes]))
    chosen = [s for s in saes if s.name in names]
    if not chosen:
        names_shown = ", ".join(s.name for s in saes[:5]) + (", ..." if len(saes) > 5 else "")
        raise _NoParentError(f"control '{control}': no SAE of this suite matches {patterns}; known: {names_shown}")
    return chosen
