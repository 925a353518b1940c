"""What to train, and everything that can be known about a training before a weight is loaded.

    request = finetune_request("t4", "owner/base", "conversations.csv")
    print(plan(request, weights=False))

`bnbench finetune --dry-run` prints that, and `bnbench finetune --list` prints `recipe_table`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnbench.data.corpus import Conversation, Example, SplitSizes, load_corpus
from bnbench.data.pairs import Pair, load_pairs
from bnbench.errors import MissingExtraError, RecipeError, require
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.collate import Row, check_rows, count_samples, count_tokens, make_rows, rows_sha256
from bnbench.finetune.memory import SAMPLES, Estimate, Shape, duration, estimate, gpu_of, outlook
from bnbench.finetune.recipes import Recipe, get_tuner, list_recipes, load_recipe
from bnbench.finetune.tuners.adapter import adapt, linear_parameters, own_attention, recipe_of_adapter
from bnbench.finetune.tuners.base import Job
from bnbench.metrics.normalization import normalize
from bnbench.models.hub import BUNDLED, SMALL, ModelFiles, locate, resolve_base
from bnbench.models.loading import Device, Precision, choose_precision, import_libraries, outline
from bnbench.models.prompts import SYSTEM, Prompter, pad_id
from bnbench.progress import quiet
from bnbench.records import OF_TRAINING, alone, slug

_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class FinetuneRequest:
    """What to train, and where; `finetune_request` makes one of a data file.

    `fingerprint` is the corpus's. `base_folder` is where the base lies if `base` is only the name that the adapter
    should record. `stop_after` (seconds) ends the session early with everything saved. `command` is what a user would
    type to go on. A recipe whose tuner trains on pairs takes `pairs`, and no examples, and is measured on `held_out`;
    any other validates on `validation`, if there is one. `start` is the folder of an adapter that a training on pairs
    goes on with, and that is its reference then.
    """

    base: str
    examples: tuple[Example, ...]
    fingerprint: str
    output: Path
    recipe: str | Path | Recipe = "t4"
    overrides: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    base_folder: Path | None = None
    system: str = SYSTEM
    device: str = "auto"
    trust_remote_code: bool = False
    stop_after: float | None = None
    command: str = ""
    pairs: tuple[Pair, ...] = ()
    held_out: tuple[Pair, ...] = ()
    validation: tuple[Example, ...] = ()
    start: Path | None = None


def finetune_request(
    recipe: str | None = None, base: str | None = None, data: str | None = None, out: Path | None = None, *,
    columns: Mapping[str, str] | None = None, split_sizes: str = "4000/300/300", split: str = "train",
    limit: int | None = None, overrides: Mapping[str, str] | None = None, stop_after: str | None = None,
    device: str = "auto", trust_remote_code: bool = False, command: str = "", weights: bool = True,
    start: Path | None = None,
) -> FinetuneRequest:  # fmt: skip
    """Reads the corpus as `bnbench evaluate` splits it, so that a test row is never trained on, and names the folder.

    `base` is a folder or hub id with an optional @revision; None is the bundled base, for the recipe "demo" instead of
    "t4". Rows that `max_tokens` would cut are dropped whole. Without `weights` those of the base need not be there.
    Raises CorpusError, CandidateError, PromptError or RecipeError: what is wrong with data, base or recipe.
    """
    if split not in ("train", "all"):
        raise RecipeError(f"--split {split}: train on train, or on all; the other rows are for testing")
    if columns and not data:
        raise RecipeError("--columns says what the columns of --data are called: give --data too")
    seconds, recipe = parse_duration(stop_after) if stop_after else None, recipe or ("t4" if base else "demo")
    loaded = load_recipe(recipe, overrides)

    # Name and revision as the adapter's configuration will state them.
    if start:
        files = locate(f"adapter {start}", str(start), patterns=(*SMALL, "adapter_model.safetensors"))
        start, config = files.folder, files.read_json("adapter_config.json")
        base = base or str(config.get("base_model_name_or_path") or "")
    location, _, revision = (base or f"{BUNDLED}base").partition("@")
    if base and Path(base).exists():  # absolute: the adapter's record must hold wherever `evaluate` is started
        location, revision = str(Path(base).resolve()), ""
    output = out or Path("adapters") / slug(f"{Path(recipe).stem}-{Path(location).name if base else 'demo'}")
    if processes.index() == 0:
        with alone(output, OF_TRAINING, dry=not weights):  # can be written, and nobody else is at it
            pass
    files = resolve_base(location, revision or None, trust_remote_code=trust_remote_code, weights=weights)
    prompts = Prompter.load(files, adapter=start, trust_remote_code=trust_remote_code)

    def count(examples: Sequence[Example]) -> list[int]:
        return [sum(map(len, prompts.training(e, loaded.supervise))) for e in examples]

    limits: dict[str, Any] = {"max_tokens": loaded.max_tokens, "count_tokens": count}
    sizes, chosen = SplitSizes.parse(split_sizes), dict[str, Any](examples=())
    if loaded.pairs:
        found = load_pairs(data, columns=columns, sizes=sizes, **limits)
        corpus, chosen["pairs"] = found.corpus, found.select(split, limit)
        chosen["held_out"] = found.held_out(split)[:limit]
    else:
        corpus = load_corpus(data, columns=columns, sizes=sizes, **limits)
        chosen["examples"] = corpus.select(split, limit)
        chosen["validation"] = corpus.splits.get("validation", ())[:limit] if split == "train" else ()
    if not corpus.is_split:
        _log.warning("%s: too few rows to split, so all are trained on; test on others", corpus.source)
    return FinetuneRequest(
        base=location, fingerprint=corpus.fingerprint, recipe=loaded, revision=revision or None, device=device,
        output=output, trust_remote_code=trust_remote_code, stop_after=seconds, command=command, start=start, **chosen,
    )  # fmt: skip


def parse_duration(text: str) -> float:
    """`11h30m`, `45m` or `90s` in seconds; RecipeError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise RecipeError(f"{text!r} is no length of time: write it as 11h30m, 45m or 90s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


@dataclass(frozen=True, kw_only=True)
class Plan(Job):
    """A job that passed every check. A pair is two rows; the estimate is for one of the processes.

    `targets` are the layers and tensors that it adapts; `unpacked` is why rows are not packed, where the recipe would.
    """

    fingerprint: str
    prompt: Mapping[str, str]
    targets: tuple[str, ...]
    unpacked: str
    trainable: int
    total: int
    processes: int
    estimate: Estimate

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)

    def __str__(self) -> str:
        from jinja2 import Template

        unit = "pairs" if self.recipe.pairs else "rows"
        if self.recipe.packing and self.recipe.packing_over == "epoch":
            unit = "full rows"
        shared = f" shared by {self.processes} processes" if self.processes > 1 else ""
        shared += ", as is the base" * processes.share_base()
        text = (Path(__file__).parent / "templates" / "plan.txt.j2").read_text(encoding="utf-8")
        return str(Template(text, trim_blocks=True, lstrip_blocks=True).render(p=self, of=f"{unit}{shared}")).strip()

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from, as plain JSON values."""
        more = {"validation_sha256": rows_sha256(self.validation)} if self.validation else {}
        if self.start:
            more["start_sha256"] = ModelFiles("", "", "", self.start).weights_sha256()
        return {
            **more, "recipe": self.recipe.influences(),
            "data": {"fingerprint": self.fingerprint, "rows": len(self.rows), "rows_sha256": rows_sha256(self.rows)},
            "base": self.base.hashes, "prompt": dict(self.prompt), "dtype": self.precision.dtype_name,
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """The numbers of a dry run, as plain JSON values."""
        recipe, precision = self.recipe, self.precision
        return {
            "recipe": recipe.name, "base": self.base.name, "weights_here": bool(self.base.weights()),
            "trainable_parameters": self.trainable, "total_parameters": self.total, "targets": list(self.targets),
            "packing": recipe.packing, "not_packed_because": self.unpacked or None,
            "precision": precision.dtype_name, "quantisation": precision.quantisation,
            "precision_reason": precision.reason, "device": self.device,
            "rows": len(self.rows), "held_out_rows": len(self.held_out), "validation_rows": len(self.validation),
            "tokens": count_tokens(self.rows), "supervised_tokens": sum(row.supervised for row in self.rows),
            "longest_row_tokens": self.longest, "samples_per_step": recipe.samples_per_step,
            "processes": self.processes, "steps": self.steps, "warmup_steps": self.warmup_steps,
            "checkpoints_every": recipe.save_every, "estimate": self.estimate.summary(),
        }  # fmt: skip


def plan(request: FinetuneRequest, *, weights: bool = True) -> Plan:
    """Checks recipe, base and rows, and counts what the training will be; loads the tokenizer but no weights.

    Without `weights` (a dry run) neither they nor the tuner's device and packages need be here; what lacks is logged.
    RecipeError (or a small GPU), CandidateError, PromptError, CorpusError (rows not to train on), MissingExtraError.
    """
    recipe = load_recipe(request.recipe, request.overrides)
    if request.start:
        recipe = recipe_of_adapter(recipe, request.start)
    trust = request.trust_remote_code
    device = _check_machine(recipe, request.device, weights)
    if recipe.pairs != bool(request.pairs) or (request.pairs and request.examples):
        wanted = "pairs, and no examples" if recipe.pairs else "examples, and no pairs"
        raise RecipeError(f'recipe {recipe.name}: the tuner "{recipe.tuner}" trains on {wanted}')

    where: dict[str, Any] = {"folder": request.base_folder, "trust_remote_code": trust, "weights": weights}
    base = resolve_base(request.base, request.revision, **where)
    with quiet():
        model = outline(base, trust_remote_code=trust)
        config, unpacked = model.config, own_attention(model) if recipe.packing else ""
        recipe = replace(recipe, packing=recipe.packing and not unpacked)
        packed = linear_parameters(model)
        adapted = adapt(model, recipe, low_cpu_mem_usage=True)
    _check_model(recipe, model)
    prompts = Prompter.load(base, adapter=request.start, system=request.system, trust_remote_code=trust)
    pad = pad_id(prompts.tokenizer, config.get_text_config().vocab_size, prompts.stop_ids)

    # A pair is two examples in turns, and so two rows.
    examples = request.examples or [e for p in request.pairs for e in (p.chosen, p.rejected)]
    rows = make_rows(examples, prompts, recipe.loss, recipe.supervise)
    if recipe.supervise == "all":
        several = sum(isinstance(example, Conversation) for example in examples)
        _log.info("every reply is trained on: %d of %d rows have several turns", several, len(rows))
    held_out = make_rows([e for p in request.held_out for e in (p.chosen, p.rejected)], prompts, recipe.loss)
    validation, characters = _validation_rows(request, recipe, prompts)
    for part in (rows, *filter(None, (held_out, validation))):
        check_rows(part, max_tokens=recipe.max_tokens, stops=prompts.stop_ids, pad=pad)

    trainable, total = adapted.get_nb_trainable_parameters()
    share, lora = recipe.shared(processes.count()), adapted.peft_config["default"]
    targets = {name.rpartition(".")[2] for name in adapted.targeted_module_names} | set(lora.target_parameters or ())
    steps = recipe.count_steps(count_samples(rows, recipe))
    gpu = device.name if device.type == "cuda" else gpu_of(recipe.card) or "T4"
    shape = Shape.of(config, total - trainable, packed)
    more: dict[str, Any] = {"adapters": 2 if request.start else 1}
    more["sharing"] = processes.count() if processes.share_base() else 1
    expected = estimate(shape, share, rows, trainable, steps, gpu=gpu, validation=validation, **more)
    if device.memory is not None:
        expected.check_fits(device.memory, device.name)
    return Plan(
        recipe=recipe, base=base, rows=rows, held_out=held_out, fingerprint=request.fingerprint,
        validation=validation, validation_characters=characters, start=request.start,
        prompt=prompts.describe(), targets=tuple(sorted(targets)), unpacked=unpacked, pad_id=pad,
        precision=recipe_precision(recipe, device, total - trainable),
        device=device.type, trainable=trainable, total=total, steps=steps, warmup_steps=recipe.count_warmup(steps),
        processes=processes.count(), estimate=expected, output=request.output, trust_remote_code=trust,
    )  # fmt: skip


def _check_model(recipe: Recipe, model: Any) -> None:
    if recipe.quantisation == "nf4" and model.config.model_type == "mamba":
        why = "Mamba multiplies by its weights itself, which must not be packed"
        raise RecipeError(f"recipe {recipe.name}: {why}: --set tuner=lora --set quantisation=none")
    if recipe.checkpointing != "none" and not model.supports_gradient_checkpointing:
        why = f"{type(model).__name__} can recompute no layers: --set checkpointing=none"
        raise RecipeError(f"recipe {recipe.name}: {why}")
    if processes.share_base():
        from bnbench.finetune.engine.shards import decoder_layers

        held = [id(t) for m in decoder_layers(model).values() for t in (*m.parameters(), *m.buffers())]
        why = "DoRA measures all weights before it begins" if recipe.dora else ""
        why = why or ("it is quantised already" if getattr(model.config, "quantization_config", None) else "")
        why = why or ("" if held and len(set(held)) == len(held) else "it has no layers that stand for themselves")
        if why:
            raise RecipeError(f"recipe {recipe.name}: this base cannot be shared (--use_fsdp): {why}")


def _validation_rows(request: FinetuneRequest, recipe: Recipe, prompts: Prompter) -> tuple[tuple[Row, ...], int]:
    """The rows to validate on, of which the replies alone are supervised, and the replies' normalised characters."""
    chosen = request.validation[: recipe.validation_rows or None] if recipe.validate_every else ()
    replies = [e.reference for e in chosen]
    if recipe.supervise == "all":
        replies += [said for e in chosen if isinstance(e, Conversation) for said in e.turns[1::2]]
    return make_rows(chosen, prompts, "completion", recipe.supervise), sum(len(normalize(text)) for text in replies)


def _check_machine(recipe: Recipe, wanted: str, trains: bool) -> Device:
    eight_bits = recipe.quantisation == "nf4" or "8bit" in recipe.optimizer
    import_libraries()
    for module in ("torch", "transformers", "peft", *(["bitsandbytes"] if eight_bits else [])):
        require(module, extra="models" if module in ("torch", "transformers") else "finetune")
    if recipe.report_to != "none" and find_spec(recipe.report_to) is None:
        raise MissingExtraError(f'{recipe.report_to} is not installed: pip install ".[trackers]" in a clone')
    if wanted not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"device is {wanted!r}: choose auto, cpu or cuda (and a card by CUDA_VISIBLE_DEVICES)")
    device, tuner = Device.of(wanted), get_tuner(recipe.tuner)
    tuner.check(recipe, device if trains else None)
    for module, name in tuner.packages.items():
        if find_spec(module) is None:  # found, and not imported: some change torch as they load
            missing = f'{module} is not installed: pip install {name} (the tuner "{recipe.tuner}" needs it)'
            if trains:
                raise MissingExtraError(missing)
            _log.warning("%s", missing)
    return device


def recipe_precision(recipe: Recipe, device: Device, parameters: int) -> Precision:
    """The arithmetic of a training: what the device is fast in for so many parameters, or what the recipe wants."""
    chosen = choose_precision(device, parameters, recipe.quantisation == "nf4")
    if recipe.precision != "auto":
        reason = f"{recipe.precision}, because the recipe {recipe.name} asks for it"
        if recipe.precision == "bfloat16" and chosen.dtype_name == "float16":
            reason += f", though {device.name or 'the card'} only emulates it: float16 would be several times faster"
        chosen = replace(chosen, dtype_name=recipe.precision, reason=reason)
    if device.type == "cpu" and chosen.dtype_name == "float16":
        raise RecipeError('precision "float16" cannot be trained on a CPU: set precision = "auto"')
    return chosen


def recipe_list() -> list[dict[str, Any]]:
    """The shipped recipes as plain JSON values; `estimate` is `outlook`'s, null where no GPU is needed."""
    recipes = [load_recipe(name) for name in list_recipes()]
    return [{**r.to_dict(), "estimate": e.summary() if (e := outlook(r)) else None} for r in recipes]


def recipe_table() -> str:
    """The same for a terminal: name, what it is, the GPU it is for, and what it asks of that GPU."""
    recipes = [load_recipe(name) for name in list_recipes()]
    width, lines = max(len(recipe.name) for recipe in recipes), []
    for recipe in recipes:
        lines += [f"{recipe.name:<{width}}  {recipe.description}", f"{'':<{width}}  card: {recipe.card}"]
        if expected := outlook(recipe):
            peak = f"{expected.peak / 2**30:.1f} GiB at {recipe.max_tokens:,} tokens"
            time = f", {SAMPLES:,} samples in about {duration(expected.seconds)}" if expected.seconds else ""
            lines.append(f"{'':<{width}}  estimated for Llama-3.1-8B on {expected.gpu}: {peak}{time}")
    return "\n".join(lines)
