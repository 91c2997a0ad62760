"""A model adapter: how a kind of model is loaded and run. This one is a random stack of blocks, without attention."""

from saeval.plugin import Capture, Model, ModelAdapter, ModelSpec, hookimpl, torch, validated
from saeval.testing import TinySAE, evaluate_tiny

WIDTH, VOCABULARY = 16, 50


class Blocks(Model):
    """A loaded model. Every forward pass goes through `capture` or `resumed`."""

    def __init__(self, blocks, device):
        generator = torch.Generator().manual_seed(0)
        self.device, self.dtype = torch.device(device), torch.float32
        self.embed = torch.randn(VOCABULARY, WIDTH, generator=generator).to(device)
        self.blocks = [torch.randn(WIDTH, WIDTH, generator=generator).to(device) / 4 for _ in range(blocks)]

    def capture(self, batch, hooks, final, resumable=()):
        return self.rest(self.embed[batch.tokens], 0, hooks, final)

    def resumed(self, batch, captured, hook_name, activations, hooks=(), final=True):
        return self.rest(activations, int(hook_name.split(".")[1]), hooks, final)

    def rest(self, x, first, hooks, final):
        """Run the blocks from `first` on, and keep the activations at `hooks`."""
        kept = {}
        for number in range(first, len(self.blocks)):
            if (name := f"blocks.{number}.hook_resid_pre") in hooks:
                kept[name] = x
            x = x + torch.tanh(x @ self.blocks[number])
        return Capture(kept, x if final else None)

    def unembed(self, hidden):  # [n, d_model] -> [n, vocabulary]
        return hidden @ self.embed.T

    def head(self, final, batch):  # the same by the model's own head: the two are compared on 16 tokens
        return final @ self.embed.T


class BlocksSpec(ModelSpec):
    """What is known before weights load."""

    def __init__(self, blocks: int = 2):  # the keys of `model: {use: blocks, blocks: 2}`
        self.name, self.blocks = "blocks", blocks

    def identity(self):  # plain data that determines the numbers: part of every key
        return {"adapter": "blocks", "blocks": self.blocks}

    def hooks(self):
        return {f"blocks.{number}.hook_resid_pre": WIDTH for number in range(self.blocks)}

    def canonical(self, hook_name):
        return hook_name

    def tokenizer(self):
        return None

    def tokenizer_identity(self):
        return None

    context, vocabulary = None, VOCABULARY

    def load(self, device):
        return Blocks(self.blocks, device)


class BlocksAdapter(ModelAdapter):
    """Random blocks without attention, with as many `blocks` as asked for."""

    name, entry = "blocks", BlocksSpec

    def spec(self, reference):
        return BlocksSpec(**validated(BlocksSpec, reference, "model 'blocks'"))


@hookimpl
def saeval_models():
    return [BlocksAdapter]


def run():
    model = BlocksAdapter().spec({"blocks": 3})
    return evaluate_tiny(["ce", "kl"], model=model, saes=[TinySAE()], controls=["identity"])


def test_a_perfect_substitute_changes_no_prediction():
    assert abs(run().value("kl.kl_sae", "identity")["value"]) < 1e-6


if __name__ == "__main__":
    print(run().leaderboard())
