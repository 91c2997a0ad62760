"""An engine: how the workers of a run are started. Here they are threads of this process, enough for a test."""

import queue
import threading
from tempfile import TemporaryDirectory

import saeval
from saeval.plugin import Worker, WorkerEngine, WorkerSession, hookimpl


class Thread(Worker):
    """Answers one request at a time with a `WorkerSession`; requests and answers are text."""

    def __init__(self, number):
        self.name = f"thread {number}"
        self.requests, self.answers = queue.SimpleQueue(), queue.SimpleQueue()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        session = WorkerSession()
        while (request := self.requests.get()) is not None:
            self.answers.put(session.answer(request))

    def send(self, request):
        self.requests.put(request)

    def answer(self):  # never waits
        return None if self.answers.empty() else self.answers.get()

    def ended(self):  # why the worker is gone; None while it lives
        return None if self.thread.is_alive() else "its thread ended"


class Threads(WorkerEngine):
    """Threads of this process, `threads:N`."""

    name = "threads"

    def __init__(self):  # its parameters are `--engine-option KEY=VALUE`
        self.workers = []

    def start(self, count, needs, folder):
        self.workers = [Thread(number) for number in range(1, (count or 1) + 1)]
        return [*self.workers]

    def stop(self):
        for worker in self.workers:
            worker.requests.put(None)
        self.workers = []


@hookimpl
def saeval_engines():
    return [Threads]


SUITE = {
    "suite": "small",
    "model": "testbed",
    "data": {"use": "python-stdlib", "sequences": 16, "context": 16},
    "saes": ["testbed/relu-3"],
    "metrics": ["l0"],
    "batch": 4,
}


def run(engine="threads:1"):
    plugins = saeval.Plugins([__file__])  # a plugin file travels to workers, an object would not
    with TemporaryDirectory() as folder:
        return saeval.run(SUITE, out=folder, plugins=plugins, engine=engine, block=8)


def test_workers_give_the_numbers_of_one_process():
    assert run().value("l0.l0") == run("local").value("l0.l0")


if __name__ == "__main__":
    print(run().value("l0.l0")["value"])
