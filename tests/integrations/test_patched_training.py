"""Patched models in what people train them with: Trainer, torch.compile, gradient checkpointing, save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from maekernels.integrations import patch, unpatch
from tests.integrations.small_models import NAMES, assert_alike, assert_same_bits, make_case, package, run

BOTH = pytest.mark.parametrize("name", NAMES)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@BOTH
def test_gradient_checkpointing(name):
    case = make_case(name)
    expected = run(patch(case.make()).train(), case.inputs)
    model = patch(case.make()).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for mine, theirs in zip(run(model, case.inputs), expected, strict=True):
        assert_alike(mine, theirs)
    unpatch(model)
    for mine, theirs in zip(run(model, case.inputs), run(case.make(), case.inputs), strict=True):
        assert_alike(mine, theirs)


@BOTH
def test_compiled_in_one_graph(name):
    """aot_eager: the graph that inductor would get, without the minutes of compiling it."""
    case = make_case(name, num_hidden_layers=1, decoder_num_hidden_layers=1)
    model = patch(case.make(), masked=case.masked)
    expected, expected_grads = run(model, case.inputs)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    outputs = compiled(**case.inputs)
    outputs.loss.backward()
    assert_alike(outputs, expected)
    assert_alike({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected_grads)


@pytest.mark.filterwarnings("ignore")
@BOTH
def test_exported_for_batches_of_any_size(name):
    case, other = (make_case(name, batch=batch, num_hidden_layers=1, decoder_num_hidden_layers=1) for batch in (3, 5))
    model, size = patch(case.make(), masked=case.masked).eval(), torch.export.Dim("batch", min=2, max=64)
    shapes = {key: {0: size} for key in case.inputs}
    exported = torch.export.export(model, (), case.inputs, dynamic_shapes=shapes).module()
    with torch.no_grad():
        assert_alike(exported(**other.inputs), case.make().eval()(**other.inputs))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch.func itself
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of torch's attention under vmap
def test_gradients_of_each_sample():
    """torch.func, for which our ops have no rules: transformers' own code computes it."""
    case = make_case("vit_mae")
    found = []
    for model in (patch(case.make()), case.make()):
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights, pixels, noise, model=model):
            inputs = {"pixel_values": pixels[None], "noise": noise[None]}
            return torch.func.functional_call(model, weights, (), inputs).loss

        found.append(torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, *case.inputs.values()))
    assert_alike(*found)
    assert all(len(grad) == 3 for grad in found[0].values())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch.func itself
@BOTH
def test_gradients_by_torch_func(name):
    case = make_case(name)
    model = patch(case.make())
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(weights):
        return torch.func.functional_call(model, weights, (), case.inputs).loss

    assert_alike(torch.func.grad(loss)(weights), run(case.make(), case.inputs)[1])


@BOTH
def test_saved_and_loaded(name, tmp_path: Path):
    case = make_case(name)
    plain = case.make()
    keys = list(plain.state_dict())
    model = patch(case.make())
    assert list(model.state_dict()) == keys
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "patched")
    assert "maekernels" not in (tmp_path / "patched" / "config.json").read_text()
    loaded = []
    for folder in ("plain", "patched"):
        # 5.24 makes the fixed positions trainable when it loads: both have a gradient for them then.
        found, notes = type(plain).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not notes["missing_keys"]
        assert not notes["unexpected_keys"]
        assert found.config._attn_implementation == "sdpa"
        loaded.append(found.train())
    expected = run(loaded[0], case.inputs)
    for mine, theirs in zip(run(loaded[1], case.inputs), expected, strict=True):
        assert_same_bits(mine, theirs)
    for mine, theirs in zip(run(patch(loaded[1]), case.inputs), expected, strict=True):
        assert_alike(mine, theirs)
    model.load_state_dict(plain.state_dict())


class Samples(Dataset):
    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs["pixel_values"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {key: value[i] for key, value in self.inputs.items()}


def train(model: nn.Module, inputs: dict[str, Tensor], folder: Path, **settings) -> list[float]:
    transformers = package("transformers")
    package("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=3,
        max_steps=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        label_names=[],
        **settings,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Samples(inputs))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
@BOTH
def test_trainer(name, tmp_path):
    case = make_case(name, batch=6)
    expected = train(case.make(), case.inputs, tmp_path)
    model = patch(case.make(), masked=case.masked)
    found = train(model, case.inputs, tmp_path)
    assert len(found) == 4
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    unpatch(model)


@pytest.mark.filterwarnings("ignore")
def test_trainer_in_bfloat16_wraps_the_forward(tmp_path):
    """accelerate leaves its wrapper on the model; `unpatch` says so rather than take it away."""
    case = make_case("vit_mae", batch=6)
    model = patch(case.make())
    assert all(loss > 0 for loss in train(model, case.inputs, tmp_path, bf16=True))
    if "_original_forward" in vars(model):
        with pytest.raises(ValueError, match="unwrap_model"):
            unpatch(model)
        package("accelerate").utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)
    unpatch(model)
    assert_same_bits(model(**case.inputs), model(**case.inputs))
