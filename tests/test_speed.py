"""Layout and compilation: from a fixed table, recorded, without effect on the numbers."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.loop_worker import DIALS, FixedBatches, new_state, settled, train
from support.plain_run import in_processes
from torch import Tensor, distributed as dist

from effnet_ray.errors import ClusterError
from effnet_ray.model.compile import Compiled, check_compiler
from effnet_ray.model.network import MEMORY_FORMATS
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train import compile_rule
from effnet_ray.train.compile_rule import compiles_by_default, eager_seconds
from effnet_ray.train.evaluation import evaluate
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, train_step
from effnet_ray.variants import LAYOUTS, VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")


# --- defaults


def test_every_variant_has_a_known_layout() -> None:
    assert {row.layout for row in VARIANTS.values()} <= set(LAYOUTS) == set(MEMORY_FORMATS)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recipe_is_settled_by_its_row_unless_it_says(variant: str, on_gpu: bool) -> None:
    def chosen(**given: object) -> tuple[str | None, bool | None]:
        recipe = Recipe(variant=variant, **given)  # type: ignore[arg-type]
        recipe = recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=on_gpu)
        return recipe.layout, recipe.compile

    row = VARIANTS[variant]
    assert chosen() == (row.layout, False)
    for layout in LAYOUTS:
        for compiled in (True, False):
            assert chosen(layout=layout, compile=compiled) == (layout, compiled)


def of_images(**given: object) -> Recipe:
    recipe = Recipe(variant="b0", weights="none", epochs=4, **given)  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


def test_eager_seconds_count_the_images_of_each_size_on_these_cores() -> None:
    whole = eager_seconds(of_images(), 1000, cores=2)
    assert whole == pytest.approx(1000 * 4 * 144 / 1779)  # b0 at 224 px: 1,779 images/s
    assert eager_seconds(of_images(), 1000, cores=4) == pytest.approx(whole / 2)
    assert eager_seconds(of_images(image_size=112), 1000, cores=2) == pytest.approx(whole / 4)
    head_only = replace(of_images(), weights="in1k", unfreeze="head", head_epochs=4)
    assert eager_seconds(head_only, 1000, cores=2) == 0
    growing = eager_seconds(of_images(progressive=0.5), 1000, cores=2)
    assert growing < whole / 2  # two sizes or more share the time


def test_a_run_is_compiled_where_it_is_long_in_float32_and_a_compiler_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enough = int(1000 * compile_rule.MIN_EAGER_S / eager_seconds(of_images(), 1000, cores=2)) + 1
    assert compiles_by_default(of_images(), enough, cores=2)
    assert not compiles_by_default(of_images(), enough, cores=4)
    assert not compiles_by_default(of_images(), enough - 2, cores=2)
    assert not compiles_by_default(of_images(precision="bfloat16"), enough, cores=2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles_by_default(of_images(), enough, cores=2)


def test_a_compiler_that_cannot_build_extensions_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    probe = "from effnet_ray.model.compile import compiler_works; print(compiler_works())"
    environment = os.environ | {"CXX": str(broken)}
    output = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.split()[-1] == "False"


# --- layout


def lies(tensor: Tensor) -> str:
    """The layout of a tensor [N, C, H, W] of more than one channel and pixel."""
    result = [name for name in LAYOUTS if tensor.is_contiguous(memory_format=MEMORY_FORMATS[name])]
    assert len(result) == 1
    return result[0]


def states(state: TrainState) -> list[Tensor]:
    """Parameters, average and moments of four dimensions."""
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    networks = [tensor for net in state.networks for tensor in net.state_dict().values()]
    tensors = [tensor for tensor in (*moments, *networks) if tensor.ndim == 4]
    return [tensor for tensor in tensors if min(tensor.shape[1], tensor[0, 0].numel()) > 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_that_of_weights_moments_and_of_every_convolutions_input(layout: str) -> None:
    recipe = settled(layout=layout, ema_decay=0.9, mixup=1.0, image_size=96)
    state, seen = new_state(recipe), set[str]()
    for network in state.networks:
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
                module.register_forward_pre_hook(lambda _, given: seen.add(lies(given[0])))
    worker, batches = PhaseTrainer(state, recipe, phases(recipe)[0]), FixedBatches(recipe)
    worker.warm_up()
    batch = next(batches.train(0))
    train_step(worker, batch, batch.readable, 1e-3)
    evaluate(state.networks, batches.eval())
    assert seen == {layout}
    assert {lies(tensor) for tensor in states(state)} == {layout}


def test_layout_does_not_change_what_is_learned() -> None:
    """Twice the same steps; SGD, which leaves float noise as small as it is."""
    runs = [train(settled(layout=layout, opt="sgd", lr=1e-3, image_size=64)) for layout in LAYOUTS]
    sums = [torch.tensor(run["sums"]) for run in runs]
    assert torch.allclose(*sums, rtol=0, atol=1e-4)


# --- compiling

CHECKED = settled(compile=True, image_size=64, batchnorm="train", micro_batch=4, opt="sgd",
                  lr=1e-3, **(DIALS | {"ema_decay": 0.0}))  # fmt: skip


def steps_of(recipe: Recipe) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Sums and weights after two steps, of which the second has a short lane."""
    state, batches = new_state(recipe), FixedBatches(recipe, short=2)
    worker = PhaseTrainer(state, recipe, phases(recipe)[-1])
    worker.warm_up()
    sums = []
    for batch in batches.train(0):
        tally = train_step(worker, batch, batch.readable, 1e-3)
        state.step += 1
        sums.append(tally.sums.tolist())
    return sums, state.network.state_dict()


@pytest.mark.long
@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_compiled_steps_are_the_eager_ones(batchnorm: str) -> None:
    """Dropout, drop path, mixing and erasing on."""
    recipe = replace(CHECKED, batchnorm=batchnorm)
    torch._dynamo.utils.counters.clear()
    sums, weights = steps_of(recipe)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    eager_sums, eager_weights = steps_of(replace(recipe, compile=False))
    assert torch.tensor(sums) == pytest.approx(torch.tensor(eager_sums), abs=1e-4)
    assert weights.keys() == eager_weights.keys()
    for name, value in weights.items():
        assert torch.allclose(value, eager_weights[name], rtol=1e-4, atol=1e-4), name


def in_a_group(rank: int, folder: str, workers: int) -> None:
    """One of the processes that train together."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{workers}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    recipe = replace(CHECKED, batchnorm="frozen", micro_batch=2)
    result = train(recipe, rank, workers)
    Path(folder, f"{workers}-{rank}.json").write_text(json.dumps(result["sums"]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_compiled_steps_are_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    sums = []
    for workers in (1, 2):
        in_processes(in_a_group, str(tmp_path), workers, processes=workers)
        sums.append(torch.tensor(json.loads((tmp_path / f"{workers}-0.json").read_text())))
    assert torch.allclose(*sums, rtol=0, atol=1e-4)


def test_a_compiled_network_keeps_its_names_and_its_copies_are_not_compiled() -> None:
    recipe = settled(compile=True)
    state = new_state(recipe)
    before = list(state.network.state_dict())
    worker = PhaseTrainer(state, recipe, phases(recipe)[0])
    assert isinstance(worker.model, Compiled) and worker.network is state.network
    assert list(state.network.state_dict()) == before
    assert type(copy.deepcopy(state.network)) is type(state.network)
    assert {id(p) for p in worker.model.parameters()} == {
        id(p) for p in state.network.parameters()
    }


def test_the_heads_epochs_are_eager() -> None:
    recipe = settled(compile=True, weights="ns", epochs=2, head_epochs=1)
    kinds = [isinstance(PhaseTrainer(new_state(recipe), recipe, phase).model, Compiled)
             for phase in phases(recipe)]  # fmt: skip
    assert kinds == [False, True]


def test_without_a_compiler_a_compiled_run_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, on_gpu in (("CXX", False), ("CC", True)):
        monkeypatch.setenv(variable, "no-such-compiler")
        with pytest.raises(ClusterError, match=r"no-such-compiler is not found on .*g\+\+"):
            check_compiler(on_gpu=on_gpu)
        monkeypatch.setenv(variable, sys.executable)
        check_compiler(on_gpu=on_gpu)


STEP = """
from support.loop_worker import FixedBatches, new_state, nothing, settled
from effnet_ray.errors import ClusterError
from effnet_ray.train.loop import fit
recipe = settled(compile=True, unfreeze="stage:7", weights="ns", head_epochs=0)
batches = FixedBatches(recipe)
try:
    fit(new_state(recipe), recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
except ClusterError as error:
    print(error)
"""


@pytest.mark.long
def test_a_worker_without_a_compiler_ends_in_a_sentence(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, [Path(__file__).parents[1], Path(__file__).parent]))
    output = subprocess.run(
        [sys.executable, "-c", STEP], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": paths, "CXX": "no-such-compiler",
                          "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    ).stdout.splitlines()  # fmt: skip
    assert len(output) == 1 and output[0].startswith("the network cannot be compiled on ")
    assert "no-such-compiler" in output[0] and output[0].endswith("use --compile False")
