"""A callback for dictionary_learning's `trainSAE`: it evaluates the dictionary of a trainer every few steps.

`trainSAE` has no callbacks; it calls `trainer.update(step, activations)` and reads `trainer.ae`. So wrap the class of
the trainer: `trainer_configs=[{"trainer": evaluated(StandardTrainer, evaluate, every=1000), ...}]`. The test below
trains a dictionary with this interface, without the library.
"""

import torch

import saeval
from saeval.testing import TinyModel, evaluate_tiny, tiny_tokens

HOOK = "blocks.1.hook_resid_pre"


def evaluated(trainer_class, evaluate, every=1000):
    """Return a trainer class that calls `evaluate(dictionary, kept)` after every so many steps."""

    class Evaluated(trainer_class):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.kept, self.evaluations = saeval.KeptPasses(), {}

        def update(self, step, activations):
            loss = super().update(step, activations)
            if (step + 1) % every == 0:
                self.evaluations[step + 1] = evaluate(self.ae, self.kept).scalars()
            return loss

    Evaluated.__name__ = trainer_class.__name__  # the library writes it into its config
    return Evaluated


class Dictionary(torch.nn.Module):
    """As dictionary_learning's `AutoEncoder`: `encode` and `decode`."""

    def __init__(self, d_in, d_sae):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(d_in, d_sae), torch.nn.Linear(d_sae, d_in)

    def encode(self, x):
        return torch.relu(self.encoder(x))

    def decode(self, f):
        return self.decoder(f)


class Trainer:
    """As its `StandardTrainer`: `update(step, activations)` takes a step and returns the loss."""

    def __init__(self, d_in, d_sae, lr):
        self.ae = Dictionary(d_in, d_sae)
        self.optimizer = torch.optim.Adam(self.ae.parameters(), lr)

    def update(self, step, activations):
        f = self.ae.encode(activations)
        loss = (self.ae.decode(f) - activations).square().sum(-1).mean() + 0.1 * f.sum(-1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def run(steps=40):
    """Train as `trainSAE` does, and return what was logged by step."""
    torch.manual_seed(0)
    model, rows = TinyModel(), tiny_tokens()
    batch = rows.batch(range(len(rows)), "cpu")
    x = model.capture(batch, [HOOK], False).activations[HOOK][batch.mask]

    def evaluate(sae, kept):
        return evaluate_tiny(["l0", "reconstruction"], model=model, rows=rows, saes={"sae": (sae, HOOK)}, kept=kept)

    trainer = evaluated(Trainer, evaluate, every=20)(16, 32, lr=1e-2)
    for step in range(steps):
        trainer.update(step, x)
    return trainer.evaluations


def test_training_improves_the_reconstruction():
    (_, before), (_, after) = run().items()
    name = "reconstruction.explained_variance"
    assert after[name] > before[name]


if __name__ == "__main__":
    for step, numbers in run().items():
        print(f"step {step}: {', '.join(numbers)}")
