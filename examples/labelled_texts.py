"""A metric of labelled texts: what it learns on the fit split, it is tested on with the evaluated texts."""

import torch

from saeval.plugin import Mean, Metric, Moments, Scalar, fit_split, fold, hookimpl
from saeval.testing import evaluate_tiny, tiny_labelled


@fold
@fit_split
def class_means(pooled_acts, fit_labels):  # [batch, d_sae]; [batch, tasks]: 1, 0, or -1 for a text that is not fitted
    """Fold over the fit split: the means of the features on the texts of each class of the first task."""
    answers = torch.from_numpy(fit_labels[:, 0])
    return {label: Moments.of(pooled_acts, answers == label) for label in (0, 1)}


class NearestMean(Metric):
    """Share of the texts whose features are nearer to the mean of their own class than to that of the other.

    Values:
        accuracy: right answers over all evaluated texts of the first task; share; 0 .. 1; higher is better.
    """

    name, version = "nearest_mean", 1

    def __init__(self, tasks: tuple[str, ...] = ("*",), pooling: str = "mean"):
        self.tasks, self.pooling = tasks, pooling  # quantities request parameters of the metric by name

    def observe(self, pooled_acts, task_labels, class_means):
        means = [torch.from_numpy(class_means[label].mean) for label in (0, 1)]
        distances = [(pooled_acts.cpu() - mean).norm(dim=-1) for mean in means]
        answers = torch.from_numpy(task_labels[:, 0])
        return Mean.of((distances[1] < distances[0]) == (answers == 1), answers >= 0)

    def conclude(self, total):
        return {"accuracy": Scalar(total.value, unit="share", better="higher")}


@hookimpl
def saeval_metrics():
    return [NearestMean]


@hookimpl
def saeval_quantities():
    return [class_means]


def run():
    rows, fit = tiny_labelled(40, seed=1), tiny_labelled(80, seed=0)
    return evaluate_tiny(["nearest_mean"], NearestMean, rows=rows, fit=fit, quantities=[class_means])


def test_classes_that_the_tokens_tell_are_told():
    assert run().value("nearest_mean.accuracy")["value"] > 0.9


if __name__ == "__main__":
    print(run().leaderboard())
