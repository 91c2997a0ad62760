"""A callback for sae-lens' trainer: it evaluates the SAE in training, and the trainer logs the numbers.

sae-lens calls its evaluator only where it logs to Weights & Biases; `wandb.init(mode="disabled")` sends nothing.
"""

import contextlib
import io
import warnings

import torch

import saeval
from saeval.testing import TinyModel, evaluate_tiny, tiny_tokens

HOOK = "blocks.1.hook_resid_pre"


class Evaluation:
    """Pass it as `evaluator` of `sae_lens`' `SAETrainer`."""

    def __init__(self, evaluate):
        self.evaluate, self.kept, self.rows = evaluate, saeval.KeptPasses(), []

    def __call__(self, sae, data_provider, activation_scaler):
        results = self.evaluate(sae, self.kept)
        numbers = results.scalars()  # {"ce.delta_ce": 0.12, ...}
        self.rows.append((results.forward_passes, dict(numbers)))  # sae-lens adds its own to what it gets
        return numbers


def run(steps=40, every=20):
    """Train an SAE on the activations of a tiny model, and return what was logged."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import wandb
        from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(0)
        model, rows = TinyModel(), tiny_tokens()

        def evaluate(sae, kept):  # with a real model: saeval.evaluate(model=model, tokenizer=tokenizer, data=..., ...)
            return evaluate_tiny(["l0", "ce"], model=model, rows=rows, saes={"sae": (sae, HOOK)}, kept=kept)

        def activations():
            batch = rows.batch(range(len(rows)), "cpu")
            x = model.capture(batch, [HOOK], False).activations[HOOK][batch.mask]
            while True:
                yield x[torch.randint(len(x), (64,))]

        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=16, d_sae=32, l1_coefficient=0.1))
        logger = LoggingConfig(wandb_log_frequency=every, eval_every_n_wandb_logs=1)
        config = SAETrainerConfig(steps * 64, 64, lr=1e-2, lr_end=1e-3, n_batches_for_norm_estimate=4, logger=logger)
        evaluation = Evaluation(evaluate)
        with wandb.init(mode="disabled"):
            SAETrainer(config, sae, activations(), evaluator=evaluation).fit()
    return evaluation.rows


def test_each_evaluation_after_the_first_runs_the_model_less():
    (first, before), (second, after) = run()
    assert second < first / 2
    assert after["ce.delta_ce"] != before["ce.delta_ce"]


if __name__ == "__main__":
    for _, numbers in run():
        print(", ".join(numbers))
