"""Small worlds in which a claim is false, or true: models, SAEs and text, each drawn from a number."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch

from saeval import evaluate
from saeval.interfaces.data import Batch, Dataset, PairBatch
from saeval.plugin import hashed, normal
from saeval.testing import TinyModel, register_rows, tiny_plugins, tiny_tokens
from saeval_synthetic.source import Synthetic

plugins = functools.cache(tiny_plugins)


def evaluated(name, rows, *, fit=None, **options):
    """Results on rows in memory, by a name of their own."""
    data = register_rows(name, rows, fit)
    results = evaluate(data=data, plugins=plugins(), preflight="off", **options)
    failed = [(r.metric, r.subject, r.reason) for r in results if r.status != "ok"]
    assert not failed, failed
    return results


class Signs(TinyModel):
    """One block; every vector of eight signs is a token, so that activations at its hook have no main direction."""

    def __init__(self, quiet=False):
        super().__init__(layers=1, d_model=8, vocab=256)
        self.embed = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))
        if quiet:  # the last dimension moves nothing, the first much
            first, _ = self.blocks[0]
            first[-1], first[0] = 0, first[0] * 3
            self.head_weight[-1], self.head_weight[0] = 0, self.head_weight[0] * 3


class Noise:
    """x̂ = x + `size`·‖x‖ times a unit vector, drawn for each token from its text so far, and features that are noise.

    The vector is isotropic, or ± the unit vector of `along`.
    """

    hook_name, d_sae, reads_earlier = "blocks.0.hook_resid_pre", 16, True

    def __init__(self, seed, size=0.5, along=None):
        self.noise_seed, self.size, self.along = seed, size, along

    def encode(self, x):
        values = x.numpy().astype(np.float32).view(np.uint32).astype(np.uint64)
        tokens = hashed(self.noise_seed, *np.moveaxis(values, -1, 0))
        keys = tokens.copy()
        for place in range(1, keys.shape[1]):
            keys[:, place] = hashed(keys[:, place - 1], tokens[:, place])
        drawn = normal(keys.ravel(), x.shape[-1] + self.d_sae, x.device).reshape(*keys.shape, -1)
        direction = drawn[..., : x.shape[-1]]
        if self.along is not None:
            direction = direction[..., :1].sign() * torch.eye(x.shape[-1])[self.along]
        error = direction / direction.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
        return (drawn[..., x.shape[-1] :] - 1).relu().to(x), x + (self.size * error).to(x)

    def decode(self, acts, reconstruction):
        return reconstruction


FIDELITY = ["ce", "kl", "reconstruction", "l0"]


def noise_errors(run):
    """Five SAEs whose errors are isotropic noise, at a hook whose activations are isotropic."""
    return at_signs(run, Signs(), {f"sae-{i}": Noise(1000 * run + i) for i in range(5)})


def at_signs(run, model, saes):
    text = [tiny_tokens(rows=24, documents=400, context=7, vocab=256, seed=2 * run + half) for half in (0, 1)]
    metrics = [{"perturbation": {"draws": 2, "seed": run}}, *FIDELITY]
    return evaluated(f"noise-{run}", text[0], fit=text[1], model=model, saes=saes, metrics=metrics)


VOCAB = 120
"""With fewer features, so few random groups differ that no rank among them is significant."""


class Choices(Dataset):
    """Pairs of bags of tokens; each token is in a pair with a probability of ¼, on one of its sides.

    Tokens below `planted` are on the side with the pattern, the others on a random one. The side with the pattern is
    chosen, or a random one (`flip`).
    """

    pair = True
    supplies = frozenset({"labels"})

    def __init__(self, seed, pairs=48, vocab=VOCAB, planted=5, flip=True):
        random = np.random.default_rng(seed)
        present = random.random((pairs, vocab)) < 0.25
        side = random.integers(0, 2, (pairs, vocab))
        has = random.integers(0, 2, pairs) if flip else np.zeros(pairs, dtype=np.int64)
        side[:, :planted] = has[:, None]
        bags = [[np.flatnonzero(present[i] & (side[i] == s)) for i in range(pairs)] for s in (0, 1)]
        width = 2 + max(len(bag) for bags_of_side in bags for bag in bags_of_side)
        self.tokens = np.full((2, pairs, width), vocab)  # one more token, without a feature, opens each text
        self.real = np.zeros((2, pairs, width), dtype=bool)
        for s, i in itertools.product((0, 1), range(pairs)):
            bag = bags[s][i]
            self.tokens[s, i, 1 : 1 + len(bag)], self.real[s, i, : 2 + len(bag)] = bag, True
        self.flipped = np.where(has == 1, "yes", "no")
        self.seed = seed, pairs, vocab, planted, flip

    @property
    def fingerprint(self):
        return repr(self.seed)

    @property
    def clusters(self):
        return np.arange(len(self))

    def __len__(self):
        return self.tokens.shape[1]

    def batch(self, rows, device):
        rows = np.asarray(rows)
        labels = {"subset": np.full(len(rows), "planted"), "flipped": self.flipped[rows]}
        sides = []
        for s in (0, 1):
            tokens, real = torch.from_numpy(self.tokens[s, rows]), torch.from_numpy(self.real[s, rows])
            mask = real & (torch.arange(tokens.shape[1]) >= 1)
            sides.append(Batch(tokens, tokens, mask, real, rows, rows, {"labels": labels}))
        return PairBatch((sides[0], sides[1]), torch.ones(len(rows), dtype=torch.int64))


class Counted(TinyModel):
    """The reward of a text is the sum of its tokens' `effects`, and a token's gradient is its number in `gradients`."""

    def __init__(self, effects, gradients):
        vocab = len(effects)
        super().__init__(layers=1, d_model=vocab, vocab=vocab + 1, kind="reward")
        self.embed = torch.eye(vocab + 1, vocab)
        self.effects, self.gradients = (
            torch.as_tensor(numbers, dtype=torch.float32) for numbers in (effects, gradients)
        )
        self._identity |= {"effects": list(map(float, effects)), "gradients": list(map(float, gradients))}

    def _block(self, index, x, real=None):
        return x

    def _finish(self, x, batch):
        reward = x @ self.effects + (x * x - x) @ (self.gradients - self.effects)
        return (reward * batch.real).sum(1)


class Tokens:
    """An SAE with a feature for each token."""

    hook_name = "blocks.0.hook_resid_pre"

    def __init__(self, vocab=VOCAB):
        self.W_dec = self.W_enc = torch.eye(vocab)
        self.b_enc = self.b_dec = torch.zeros(vocab)

    def encode(self, x):
        return x.relu()

    def decode(self, acts):
        return acts


ATTRIBUTION = {
    "baseline": "zero",
    "top": 5,
    "groups": [1],
    "random": 60,
    "contexts": 0,
    "frequent": 1.0,
    "tolerance": 1e9,
}
REWARD = [
    "reward_margin",
    {"reward_attribution": {**ATTRIBUTION, "steps": 1}},
    {"reward_attribution": {**ATTRIBUTION, "steps": 0, "random": 1, "as": "gradients"}},
    {"planted_recovery": {"baseline": "zero", "steps": 1, "sizes": [1, 5]}},
]


def preferences(run, flip=True, boost=0.0, metrics=REWARD):
    """A reward model whose tokens have independent effects and gradients; planted ones have a larger effect (`boost`)."""
    random = np.random.default_rng([run, 1])
    effects, gradients = random.standard_t(4, VOCAB), random.standard_t(4, VOCAB)
    effects[:5] += boost
    rows = Choices([run, 0], flip=flip)
    return evaluated(f"pairs-{run}", rows, model=Counted(effects, gradients), saes={"sae": Tokens()}, metrics=metrics,
                     batch_size=len(rows))  # fmt: skip


def unit_rows(number, part):
    """20 random unit vectors of 16 dimensions."""
    drawn = normal(hashed(number, part, np.arange(20)), 16).float()
    return drawn / drawn.norm(dim=1, keepdim=True)


class Untrained:
    """A TopK SAE with random unit directions, fitted to activations `x` in its mean and scale alone.

    The encoder is the transposed decoder, or has directions of its own (`untied`). With `base`, the number of another
    one, directions are those plus 0.05 times random ones. With `apart`, those of each seed have four dimensions of
    their own.
    """

    hook_name = "blocks.1.hook_resid_pre"

    def __init__(self, number, x, seed=0, untied=False, base=None, apart=False):
        def directions(part):
            drawn = unit_rows(number, part)
            if apart:
                drawn = drawn * (torch.arange(16) // 4 == seed)
            return drawn if base is None else unit_rows(base, part) + 0.05 * drawn

        self.W_dec = directions(0)
        self.W_enc = directions(1).T if untied else self.W_dec.T
        self.b_dec, self.k = x.mean(0), 4
        self.b_enc = -(self.b_dec @ self.W_enc)
        self.seed, self.scale = seed, 1.0
        guess = self.decode(self.encode(x)) - self.b_dec
        self.scale = float((guess * (x - self.b_dec)).sum() / guess.square().sum())

    def encode(self, x):
        values, indices = (x @ self.W_enc + self.b_enc).topk(self.k, dim=-1)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter(-1, indices, self.scale * values.relu())

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


MODEL = TinyModel(layers=2)


def text_and_activations(run):
    """Text of 24 documents, other text for the fit split, and its activations."""
    text, fit = (tiny_tokens(rows=24, documents=400, context=15, seed=2 * run + half) for half in (0, 1))
    batch = fit.batch(range(len(fit)), "cpu")
    (x,) = MODEL.capture(batch, [Untrained.hook_name], False).activations.values()
    return text, fit, x[batch.mask]


STABILITY = {"over": "seeds", "alive_firings": 1, "draws": 0}
FLOORS = {**STABILITY, "draws": 2, "modes": ["signed"], "controls": []}
SEEDS = [
    {"seed_stability": STABILITY},
    {"functional_stability": STABILITY},
    {"seed_stability": {**FLOORS, "as": "floors"}},
]


def seeds(run, count=4, metrics=SEEDS, **options):
    """A group of SAEs of `count` seeds, beside its twin of untrained ones and its floors."""
    text, fit, x = text_and_activations(run)
    saes = {f"sae-{run}-{i}": Untrained(1000 * run + i, x, seed=i, **options) for i in range(count)}
    return evaluated(f"seeds-{run}", text, fit=fit, model=MODEL, saes=saes, groups={"seeds": ["*"]}, metrics=metrics)


class Scaled:
    """x̂ = `scale`·x, with two features for each dimension."""

    hook_name = "blocks.1.hook_resid_pre"

    def __init__(self, scale):
        self.W_dec = torch.cat([torch.eye(16), -torch.eye(16)]) * scale
        self.W_enc = self.W_dec.T / scale
        self.b_enc, self.b_dec = torch.zeros(32), torch.zeros(16)

    def encode(self, x):
        return (x @ self.W_enc).relu()

    def decode(self, acts):
        return acts @ self.W_dec


def beside_control(run, saes=None):
    """An untrained SAE, or others, beside three draws of the control `random`."""
    text, fit, x = text_and_activations(run)
    return evaluated(f"control-{run}", text, fit=fit, model=MODEL, saes=saes or {"sae": Untrained(1000 * run, x)},
                     metrics=["ce", "kl", "reconstruction"],
                     controls=[{"use": "random", "seeds": 3, "seed": run + 1}])  # fmt: skip


HIERARCHY = {
    "dimensions": 32, "features": 32, "coherence": 0.0, "roots": 4, "branching": 3, "depth": 1, "groups": 0,
    "correlation_rank": 0, "dense_features": 0, "noise": 0.3, "magnitude_first": 1.0, "magnitude_last": 1.0,
    "magnitude_spread": 0.0, "scale_children": False, "most_probability": 0.4, "least_probability": 0.1,
}  # fmt: skip


class Forgetful:
    """Latents of the true, orthogonal directions whose threshold is a feature's activation: noise decides if they fire."""

    hook_name = "activations"

    def __init__(self, directions):
        self.W_dec = torch.as_tensor(directions)
        self.W_enc, self.b_dec = self.W_dec.T.contiguous(), torch.zeros(self.W_dec.shape[1])
        self.b_enc = torch.zeros(len(self.W_dec))

    def encode(self, x):
        acts = x @ self.W_enc
        return torch.where(acts > 1, acts, 0.0)

    def decode(self, acts):
        return acts @ self.W_dec


def unabsorbed_latents(run):
    """Latents of parents that are silent half of the time, whatever the children."""
    data = {
        "samples": 4000,
        "fit_samples": 1000,
        "context": 100,
        "documents": 40,
        "bias": 0.0,
        "seed": run,
        **HIERARCHY,
    }
    sae = Forgetful(Synthetic(**data).world().directions)
    return evaluate(
        data={"use": "synthetic", **data}, saes={"sae": sae}, metrics=["truth_absorption"], plugins=tiny_plugins(),
        preflight="off",
    )  # fmt: skip


def _units(*product):
    """The matrix, of 8 dimensions, of a product of quaternion units i, j, k; I for none. All others are skew."""
    unit = {
        "i": [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        "k": [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
    }
    matrix = torch.eye(4)
    for name in product:
        matrix = matrix @ torch.tensor(unit[name], dtype=torch.float32)
    return torch.kron(torch.eye(2), matrix)


class Turned(Signs):
    """Two blocks; the state is eight signs twice. The first block turns a change of the first copy by i.

    On all tokens it turns the first copy by k, since the second copy makes up for the difference. So an effect is not
    what the weights say (the change itself), nor what activations show (a turn by k): those directions are unrelated.
    If `plain`, a change is passed on as it is, and activations show that too.
    """

    def __init__(self, plain=False):
        super().__init__()
        self.embed = torch.cat([self.embed, self.embed], 1)
        self.blocks = [*self.blocks, *self.blocks]
        self.head_weight = torch.cat([self.head_weight, self.head_weight])
        self.cause, self.shown = (torch.eye(8), torch.eye(8)) if plain else (_units("i"), _units("k"))
        self._identity |= {"adapter": "turned", "d": 16, "layers": 2, "plain": plain}

    def _block(self, index, x, real=None):
        if index:
            return x
        a, b = x[..., :8], x[..., 8:]
        return torch.cat([a @ self.cause.T + b @ (self.shown - self.cause).T, b], -1)


class Directions:
    """ReLU features that read random directions of the first eight dimensions, and write them or, if `untied`, others."""

    d_in = 16

    def __init__(self, number, layer, d_sae, untied=False, bias=-1.0):
        self.hook_name = f"blocks.{layer}.hook_resid_pre"
        read, write = (
            torch.nn.functional.normalize(normal(hashed(number, part, np.arange(d_sae)), 8).float(), dim=1)
            for part in (0, int(untied))
        )
        self.W_enc = torch.cat([read.T, torch.zeros(8, d_sae)])
        self.W_dec = torch.cat([write, torch.zeros(d_sae, 8)], 1)
        self.b_enc, self.b_dec = torch.full((d_sae,), bias), torch.zeros(16)

    def encode(self, x):
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


class WideNoise(Noise):
    """Noise with directions that are weights."""

    def __init__(self, seed):
        super().__init__(seed)
        self.W_dec = normal(hashed(seed, np.arange(self.d_sae)), 16).float()


def connected(run, first, bias=4.0, plain=False):
    """An earlier and a later SAE, joined by three ways to their connections.

    With a large bias the later features fire on every token. An ablation lowers only features that fire, which the
    maps predict, so that with rare ones data and interventions truly agree.
    """
    text, fit = (tiny_tokens(rows=24, documents=400, context=7, vocab=256, seed=2 * run + half) for half in (0, 1))
    saes = {"first": first, "second": Directions(1000 * run + 1, 1, 80, bias=bias)}
    metric = {"over": "pair", "controls": [], "levels": [4], "ablated": 12, "alive_firings": 1, "contexts": 0, "top": 5}
    return evaluated(f"connected-{run}", text, fit=fit, model=Turned(plain), saes=saes,
                     groups={"pair": ["first", "second"]}, metrics=[{"feature_connections": metric}])  # fmt: skip
