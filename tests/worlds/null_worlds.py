"""The worlds in which claims are false, by name: a function of a tally and a number, which evaluates and counts."""

from __future__ import annotations

from worlds import (
    Directions,
    WideNoise,
    beside_control,
    connected,
    noise_errors,
    preferences,
    seeds,
    unabsorbed_latents,
)


def noise(tally, run):
    """Errors that are isotropic noise: SAEs alone, two beside each other, three ranked, and all five."""
    results = noise_errors(run)
    names = list(dict.fromkeys(result.subject for result in results))
    of = {name: [result for result in results if result.subject == name] for name in names}
    for place, name in enumerate(names):
        second, third = (names[(place + step) % len(names)] for step in (1, 2))
        tally.verdicts(of[name], {"`perturbation`, a verdict": ["perturbation.*"]})
        tally.comparison("`compare`, a sure difference in any of 43 values", of[name] + of[second], name, second)
        for column in ("ce.delta_ce", "reconstruction.fvu"):
            tally.ranks(f"ranks of 3 SAEs by `{column}`", of[name] + of[second] + of[third], column)
    tally.verdicts(results, {"`perturbation`, a verdict on any of 5 SAEs": ["perturbation.*"]})


GROUPS = {
    "`seed_stability`, more or less alike than untrained SAEs": ["seed_stability.*"],
    "`functional_stability`, more or less alike than untrained SAEs": ["functional_stability.*"],
    "`seed_stability`, an excess over the floor": ["floors.*"],
}


def untrained(tally, run):
    """Four untrained SAEs in place of those of four seeds."""
    tally.verdicts(seeds(run), GROUPS)


def nothing_shared(tally, run):
    """Four SAEs that share no direction, with encoders unrelated to their decoders.

    Agreement is never true here. Less agreement than that of untrained SAEs with tied weights is.
    """
    kinds = {kind.replace("more or less alike", "more alike"): patterns for kind, patterns in GROUPS.items()}
    tally.verdicts(seeds(run, untied=True), kinds, above=True)


LEADS = ["ce.delta_ce", "kl.kl_sae", "reconstruction.explained_variance", "reconstruction.cosine"]


def control(tally, run):
    """An untrained SAE in place of a trained one, beside the control `random`."""
    kinds = {f"`{column} vs random`": [f"{column} vs *"] for column in LEADS}
    tally.verdicts(beside_control(run), kinds, {"against": {"random": LEADS}})


def flipped(tally, run):
    """Labels at random; gradients unrelated to the reward; planted features whose effects are those of any others."""
    kinds = {
        "`reward_margin`, a preference": ["reward_margin.*"],
        "`reward_attribution.ablated_excess_kept`": ["reward_attribution.ablated_excess_*"],
        "`reward_attribution`, agreement of unrelated gradients": ["gradients.*"],
        "`planted_recovery.precision`": ["planted_recovery.*"],
    }
    tally.verdicts(preferences(run), kinds)


def unconnected(tally, run):
    """Features that are noise, which predict no later feature; and weights, activations and effects without relation."""
    maps, ways = ("`feature_connections`, maps better than the mean", "`feature_connections`, agreement of two ways")
    results = connected(run, WideNoise(1000 * run), bias=-1.0)
    if results[0].values["fvu_linear_4"]["stderr"]:
        tally.verdicts(results, {maps: ["feature_connections.fvu_*"]})
    else:  # no feature explains more than chance, so every map is the mean
        tally.add(maps, False)
    results = connected(run, Directions(1000 * run, 0, 24, untied=True))
    tally.verdicts(results, {ways: ["feature_connections.precision_*", "feature_connections.rank_correlation_*"]})


def unabsorbed(tally, run):
    """Latents of parents that are silent by chance, as often beside a child as alone."""
    tally.verdicts(
        unabsorbed_latents(run), {"`truth_absorption`, a latent that its child silences": ["truth_absorption.*"]}
    )


WORLDS = {
    "noise as the SAE's error": (noise, 200, 12),
    "untrained SAEs as seeds": (untrained, 200, 12),
    "seeds that share nothing": (nothing_shared, 200, 12),
    "an untrained SAE as a trained one": (control, 200, 40),
    "unconnected features": (unconnected, 200, 12),
    "children that silence no latent": (unabsorbed, 200, 20),
    "labels at random": (flipped, 200, 15),
}
"""Each world, the number of evaluations that make 200 runs or more, and that of the test, which has less time."""
