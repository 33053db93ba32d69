"""Steps about a policy's passes over tokens, each against a plainer way to the same log-probs and gradients."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from appo.commands.doctor.kernels import distance
from appo.commands.doctor.measuring import measure
from appo.commands.doctor.policies import on_device
from appo.commands.doctor.result import Figures, Machine, SkipStepError, StepError
from appo.distributed.fsdp import decoder_layers
from appo.policy.loading import compile_layers
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.precision import float32_products


@dataclass(frozen=True)
class Tolerance:
    """How far two ways to the same log-probs may be apart.

    Attributes:
        nats: mean distance of log-probs; a row that sees another one makes it 1 and more.
        gradient: distance of gradients, as a share of their norm.
    """

    nats: float
    gradient: float


_FLOAT32 = Tolerance(1e-4, 1e-3)
_BFLOAT16 = Tolerance(0.05, 0.2)


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens of a few trajectories.

    Attributes:
        token_ids: ``[B, T]``, right-padded.
        mask: ``[B, T]``, all tokens that have a log-prob.
        weights: ``[B, T]`` of log-probs in what is differentiated: with unlike ones, as advantages are, gradients do
            not vanish but for rounding.
    """

    token_ids: Tensor
    mask: Tensor
    weights: Tensor

    @classmethod
    def of_lengths(cls, lengths: list[int], vocab_size: int, device: torch.device) -> Rows:
        """Random tokens."""
        generator = torch.Generator().manual_seed(0)
        return cls._of([_random(length, vocab_size, generator) for length in lengths], device, generator)

    @classmethod
    def of_tree(cls, prompt: int, root: int, vocab_size: int, device: torch.device) -> Rows:
        """Two roots of a prompt, and two branches from the middle of each, one of them half as long as what is left.

        Args:
            prompt: its tokens.
            root: tokens of each root.
            vocab_size: of the tokens, which are random.
            device: of the rows.
        """
        generator = torch.Generator().manual_seed(0)
        draw = partial(_random, vocab_size=vocab_size, generator=generator)
        start, rows = draw(prompt), []
        for _ in range(2):
            head = torch.cat([start, draw(root // 2)])
            rows += [torch.cat([head, draw(length)]) for length in (root // 2, root // 2, root // 4)]
        return cls._of(rows, device, generator)

    @classmethod
    def _of(cls, rows: list[Tensor], device: torch.device, generator: torch.Generator) -> Rows:
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
        mask[:, 0] = False
        weights = torch.randn(mask.shape, generator=generator)
        return cls(pad_sequence(rows, batch_first=True).to(device), mask.to(device), weights.to(device))


def _random(length: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(4, vocab_size, (length,), generator=generator)


@dataclass(frozen=True, eq=False)
class Passed:
    """What came out of a pass: ``[N]`` log-probs, and gradients of the first parameters."""

    log_probs: Tensor
    gradients: tuple[Tensor, ...]


def _pass(evaluate: PolicyLogProbs, rows: Rows) -> Passed:
    log_probs, _ = evaluate(rows.token_ids, rows.mask)
    layers = decoder_layers(evaluate.model)
    leaves = [parameter for parameter in layers[0].parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((log_probs * rows.weights).sum(), leaves) if leaves else ()
    return Passed(log_probs[rows.mask].detach(), gradients)


def _note(figures: Figures, title: str, ours: Passed, right: Passed) -> tuple[float, float]:
    """The mean distance of log-probs and the largest one of a gradient, noted with the largest of a log-prob."""
    nats = (ours.log_probs.double() - right.log_probs.double()).abs()
    gradient = max(map(distance, ours.gradients, right.gradients), default=0.0)
    figures[f"{title}: nats, mean and largest"] = [float(nats.mean()), float(nats.max())]
    figures[f"{title}: gradient"] = gradient
    return float(nats.mean()), gradient


def _check(figures: Figures, title: str, ours: Passed, right: Passed, tolerance: Tolerance, advice: str) -> None:
    nats, gradient = _note(figures, title, ours, right)
    if not (nats <= tolerance.nats and gradient <= tolerance.gradient):
        raise StepError(f"{title}: log-probs differ by {nats:.2g} nats, gradients by {gradient:.2g}", advice)


def packing(machine: Machine, figures: Figures) -> None:
    """Rows of unlike length one behind the other against padded ones, and both against double precision."""
    lengths = [64, 192, 256, 512, 640, 1024, 1536, 2048] if machine.is_gpu else [16, 32, 48, 64]
    figures |= {"rows": len(lengths), "tokens": sum(lengths)}
    model = on_device(machine)
    rows = Rows.of_lengths(lengths, model.config.vocab_size, machine.device)
    right = _pass(_evaluator(on_device(machine).double(), packs=False), rows)
    packed, padded = _evaluator(model, packs=True), _evaluator(model, packs=False)
    for name, mixed, tolerance in (("32-true", False, _FLOAT32), ("bf16-mixed", True, _BFLOAT16)):
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=mixed):
            ours, plain = (measure(machine.device, partial(_pass, each, rows)) for each in (packed, padded))
        figures |= {f"{name} packed": str(ours), f"{name} padded": str(plain)}
        _note(figures, f"{name}, packed from float64", ours.result, right)
        _note(figures, f"{name}, padded from float64", plain.result, right)
        for title, setting in (_settings() if machine.is_gpu and not mixed else {}).items():
            with setting:
                _note(figures, f"{name}, packed {title} from float64", _pass(packed, rows), right)
        advice = "compare both with float64; another torch or driver"
        _check(figures, f"{name}, packed from padded", ours.result, plain.result, tolerance, advice)


def trees(machine: Machine, figures: Figures) -> None:
    """Rows that begin alike, with their common tokens computed once, against the same rows one behind the other."""
    model = on_device(machine)
    rows = Rows.of_tree(*(1024, 1024) if machine.is_gpu else (48, 64), model.config.vocab_size, machine.device)
    shared, flat = _evaluator(model, packs=True), _evaluator(model, packs=True)
    if not shared.shares:
        raise StepError("rows that begin alike are computed one by one", "model.attention=sdpa, or another torch")
    flat._sequences.shares = False
    for name, mixed, tolerance in (("32-true", False, _FLOAT32), ("bf16-mixed", True, _BFLOAT16)):
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=mixed):
            ours, plain = (measure(machine.device, partial(_pass, each, rows)) for each in (shared, flat))
        figures |= {f"{name} tree": str(ours), f"{name} flat": str(plain)}
        advice = "report it with this file; another torch or driver"
        _check(figures, f"{name}, tree from flat", ours.result, plain.result, tolerance, advice)


def _evaluator(model: PreTrainedModel, packs: bool) -> PolicyLogProbs:
    evaluate = PolicyLogProbs(model)
    if not evaluate._sequences.packs:
        raise StepError("rows are padded where they could be packed", "see the step `attention`")
    evaluate._sequences.packs = packs
    return evaluate


def _settings() -> dict[str, AbstractContextManager[None]]:
    """What else may decide about the digits of float32."""
    return {
        "by the math kernel": sdpa_kernel(SDPBackend.MATH),
        "by the efficient kernel": sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
        "with TF32": float32_products("tf32"),
    }


def compiled(machine: Machine, figures: Figures) -> None:
    """Layers that ``model.compile=true`` compiles against plain ones, for rows of several lengths."""
    if not machine.is_gpu and not shutil.which("g++") and not shutil.which("clang++"):
        raise SkipStepError("torch.compile needs a C++ compiler on a CPU")
    plain, fast = on_device(machine), on_device(machine)
    if not machine.is_gpu:  # whose compiler takes a minute for the backward pass
        for model in (plain, fast):
            model.requires_grad_(False)
    compile_layers(fast)
    evaluators = [PolicyLogProbs(model) for model in (plain, fast)]
    started = perf_counter()
    for number, length in enumerate((512, 768, 1024) if machine.is_gpu else (48, 64)):
        rows = Rows.of_lengths([length] * 4, plain.config.vocab_size, machine.device)
        with nullcontext() if machine.is_gpu else torch.no_grad():
            right, ours = (measure(machine.device, partial(_pass, each, rows), repeats=2) for each in evaluators)
        if number == 0:
            figures["first pass s"] = perf_counter() - started
        figures |= {f"{length} tokens plain": str(right), f"{length} tokens compiled": str(ours)}
        advice = "model.compile=false"
        _check(figures, f"{length} tokens, compiled from plain", ours.result, right.result, _FLOAT32, advice)
