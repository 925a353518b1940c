"""The command line. A command here parses, calls one function and prints; it holds no logic.

Results go to stdout (`--json` for machines), everything else to stderr. Exit codes: 0 done, 1 failure, 2 usage or
configuration, 3 partial (the message has the command that goes on), 4 a gate failed, 130 interrupted.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bnbench import __version__
from bnbench.errors import BnbenchError, UsageError
from bnbench.progress import quiet_beside_the_first

app = typer.Typer(
    name="bnbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Evaluate Bengali chat models against their base, say which is better and by how much, and fine-tune them.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Base = Annotated[
    str | None, typer.Option(help="Base model: a folder or hub id[@revision], with an optional name= in front.")
]
Data = Annotated[
    str | None, typer.Option(help="CSV, TSV, JSONL, Parquet or a hub id. Without it: the bundled conversations.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        help="FIELD=COLUMN where the file's names differ; may be repeated; fields: topic, title, question, reference "
        "(of pairs: chosen, rejected).",
    ),
]
Sizes = Annotated[str, typer.Option("--split-sizes", help="Most rows of train/validation/test.")]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Rows longer than this after the template are dropped whole, never cut.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a model. Off for a reason.")]
Adapters = Annotated[
    list[str] | None, typer.Option(help="Adapter of the base: a folder or hub id[@revision]. May be repeated.")
]
RunFolder = Annotated[
    Path | None, typer.Option(help="Run folder; by default runs/NAME. The same command goes on with it.")
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply, in tokens; overrides --max-words.")]
FourBit = Annotated[
    bool | None, typer.Option("--4bit/--no-4bit", help="NF4 weights; by default only where the card is too small.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in a folder that holds another run.")]
Combine = Annotated[
    str | None, typer.Option(help="METRIC=WEIGHT,METRIC=WEIGHT: their weighted mean too, with weights declared now.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME:ARGUMENT (a folder, a model's id); may be repeated. Without it: the usual ones."),
]
Audit = Annotated[Path | None, typer.Option(help="Further audits: what `bnbench audit METRIC --json` printed.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, sampling and resampling.")]


def main() -> None:
    """The entry point of the command `bnbench`."""
    quiet_beside_the_first()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without Bengali, or a file name that is not UTF-8
            stream.reconfigure(errors="backslashreplace")
    app()


def command(name: str, *, resumes: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose BnbenchErrors become one message on stderr and the error's exit code.

    One that `resumes` keeps what it has computed when it is interrupted.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            logging.getLogger("bnbench").setLevel(logging.WARNING if kwargs.get("quiet") else logging.INFO)
            try:
                function(*args, **kwargs)
            except BnbenchError as error:
                typer.echo(f"bnbench: {error}", err=True)
                raise typer.Exit(error.exit_code) from None
            except (
                FileExistsError,
                FileNotFoundError,
                NotADirectoryError,
                IsADirectoryError,
                PermissionError,
            ) as error:
                typer.echo(f"bnbench: {error.filename}: {error.strerror}; choose another path", err=True)
                raise typer.Exit(2) from None
            except BrokenPipeError:
                raise  # whoever read our output has had enough: click ends quietly
            except OSError as error:  # such as a disk that is full
                where = f"{error.filename}: " if error.filename else ""
                typer.echo(f"bnbench: {where}{error.strerror or error}; what was written before is kept", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                kept = f"; what was computed is kept. Go on with: {_command_line()}" if resumes else ""
                typer.echo(f"\nbnbench: interrupted{kept}", err=True)
                raise typer.Exit(130) from None

        return app.command(name)(guarded)

    return register


def _command_line() -> str:
    return shlex.join(["bnbench", *sys.argv[1:]])


def _pairs(items: list[str] | None, flag: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in items or []]
    for left, sign, right in pairs:
        if not (left and sign and right):
            form = "KEY=VALUE" if flag == "--set" else "FIELD=COLUMN"
            raise UsageError(f"{flag} {left}{sign}{right}: write it as {form}")
    return {left: right for left, _, right in pairs}


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@command("evaluate", resumes=True)
def evaluate_command(
    base: Base = None,
    adapter: Adapters = None,
    predictions: Annotated[list[str] | None, typer.Option(help="File of recorded replies. May be repeated.")] = None,
    data: Data = None,
    columns: Columns = None,
    split: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    split_sizes: Sizes = "4000/300/300",
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N rows of the split.")] = None,
    out: RunFolder = None,
    backend: Annotated[str, typer.Option(help="What runs the models: hf (transformers), or a plug-in's name.")] = "hf",
    metric: Metrics = None,
    primary: Annotated[str, typer.Option(help="The metric that ranks, declared before the run.")] = "chrF++",
    combine: Combine = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="No sampling.")] = False,
    temperature: Annotated[float, typer.Option(min=0.01)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01)] = 1.1,
    max_words: Annotated[int, typer.Option(min=1, help="Longest reply, in Bengali words.")] = 120,
    max_new_tokens: MaxNewTokens = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts a batch; by default as many as memory holds.")
    ] = None,
    max_tokens: MaxTokens = 4096,
    four_bit: FourBit = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu …; by default the first card.")] = None,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a base and its adapters answer the same messages, and rank them. Without arguments: the bundled demo."""
    from bnbench.data.corpus import SplitSizes
    from bnbench.evaluate import EvaluationRequest, check_inputs, choose_measures, default_folder, evaluate
    from bnbench.metrics.combined import parse_weights
    from bnbench.models.backend import get_backend
    from bnbench.models.candidates import parse_candidates
    from bnbench.models.decoding import Decoding

    # The cheap checks first: finding candidates may hash, or fetch, gigabytes.
    mapping, sizes = _pairs(columns, "--columns"), SplitSizes.parse(split_sizes)
    on_disk = get_backend(backend).needs_files
    models = [*([base] if base else []), *(adapter or [])]
    check_inputs(data, mapping, split, models if on_disk else [], predictions or [])
    weights = {} if combine is None else parse_weights(combine)
    choose_measures(primary, metric or (), weights)
    decoding = Decoding(greedy, temperature, top_p, top_k, repetition_penalty, max_words, max_new_tokens, seed)
    candidates = parse_candidates(
        base, adapter or (), predictions or (), trust_remote_code=trust_remote_code, needs_files=on_disk
    )
    request = EvaluationRequest(
        candidates, out or default_folder(candidates, data), data, mapping, sizes, split, limit, decoding,
        batch_size=batch_size, max_tokens=max_tokens, quantise=four_bit, device=device,
        trust_remote_code=trust_remote_code, backend=backend, metrics=tuple(metric or ()), primary=primary,
        combine=weights, overwrite=overwrite, command=_command_line(), quiet=quiet,
    )  # fmt: skip
    _report([evaluate(request)], None, as_json)


@command("finetune", resumes=True)
def finetune_command(
    recipe: Annotated[
        str | None, typer.Option(help="A shipped recipe or a TOML file; t4, or demo for the bundled base.")
    ] = None,
    base: Base = None,
    data: Data = None,
    columns: Columns = None,
    split: Annotated[str, typer.Option(help="Rows to train on: train, or all.")] = "train",
    split_sizes: Sizes = "4000/300/300",
    limit: Annotated[int | None, typer.Option(min=1, help="Train on only the first N rows of the split.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the adapter; by default adapters/RECIPE-BASE. The same command goes on."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, another value for a key of the recipe. May be repeated."),
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="End the session after e.g. 11h30m, saved, to be gone on with.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    copy: Annotated[Path | None, typer.Option(help="Write the recipe to this file, to be changed.")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter with a recipe, or go on with one. What it writes, `evaluate --adapter` takes."""
    from bnbench import finetune as tuning

    if list_:
        typer.echo(json.dumps(tuning.recipe_list(), indent=2) if as_json else tuning.recipe_table())
        return
    name = recipe or ("t4" if base else "demo")
    if copy is not None:
        tuning.copy_recipe(name, copy)
        typer.echo(copy)
        return
    request = tuning.finetune_request(
        name,
        base,
        data,
        out,
        columns=_pairs(columns, "--columns"),
        split_sizes=split_sizes,
        split=split,
        limit=limit,
        overrides=_pairs(set_, "--set"),
        stop_after=stop_after,
        device=device,
        trust_remote_code=trust_remote_code,
        command=_command_line(),
        weights=not dry_run,
    )
    result = tuning.plan(request, weights=False) if dry_run else tuning.finetune(request)
    typer.echo(json.dumps(result.summary(), ensure_ascii=False, indent=2) if as_json else str(result))


@command("preferences")
def preferences_command(
    ratings: Annotated[
        Path | None, typer.Argument(help="CSV, TSV, JSONL or Parquet of rated replies; without it the bundled ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV to write, for finetune --recipe dpo --data.")] = Path("pairs.csv"),
    margin: Annotated[float, typer.Option(help="How much lower the rejected reply is rated, at least.")] = 0.5,
    rating: Annotated[
        list[str] | None, typer.Option(help="A column of ratings; their mean counts. May be repeated.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN where the file's names differ; fields: message, reply, title, topic."),
    ] = None,
    half: Annotated[
        str | None, typer.Option(help="Of the bundled replies: development (default), held-out, or both.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make preference pairs of rated replies: the best reply to a message against each clearly worse one."""
    from bnbench.data.pairs import preferences

    made = preferences(
        ratings, out, margin=margin, columns=_pairs(columns, "--columns"), rating_columns=rating or (), half=half
    )
    typer.echo(json.dumps(made.summary(), ensure_ascii=False, indent=2) if as_json else f"{made}\n{out}")


@command("publish")
def publish_command(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter.")],
    run: Annotated[Path | None, typer.Option(help="Run folder of its evaluation, for the model card.")] = None,
    repo: Annotated[str | None, typer.Option(help="owner/name on the hub; made where it is not there.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, push nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder; by default published/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    base_id: Annotated[str | None, typer.Option(help="Hub id of the base, where the adapter names a folder.")] = None,
    dataset_id: Annotated[
        str | None, typer.Option(help="owner/name[@revision][#task] of the evaluation's data on the hub.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence, as the hub names it.")] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter's model card with recipe and evaluation, and push both with the token in HF_TOKEN."""
    from bnbench.finetune import publish

    published = publish(
        adapter, run=run, repo=repo, out=out, base_id=base_id, dataset_id=dataset_id, license=license_,
        private=private, dry_run=dry_run,
    )  # fmt: skip
    typer.echo(json.dumps(published.summary(), ensure_ascii=False) if as_json else str(published))


@command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder.")], audit: Audit = None, as_json: Json = False
) -> None:
    """Rank a finished run again and write its report. Needs no model."""
    _report([run], None, as_json, audit)


@command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders over the same items.")],
    out: Annotated[Path, typer.Option(help="Folder of the common report.")] = Path("runs/compare"),
    audit: Audit = None,
    as_json: Json = False,
) -> None:
    """Rank the candidates of several runs together, in pairs over the same items."""
    folders = [run.resolve() for run in runs]
    if len(folders) < 2:
        raise UsageError(f"{runs[0]}: name two runs or more; `bnbench report {runs[0]}` ranks one by itself")
    twice = next((run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1), None)
    if twice:
        raise UsageError(f"{twice}: named twice; a run cannot be compared with itself")
    if out.resolve() in folders:
        raise UsageError(f"--out {out} is one of the runs; name another folder for the common report")
    _report(runs, out, as_json, audit)


def _report(folders: list[Path], out: Path | None, as_json: bool, audits: Path | None = None) -> None:
    from bnbench.records import read_run
    from bnbench.reports import write_report

    report = write_report([read_run(folder) for folder in folders], out or folders[0], audits=audits)
    typer.echo(json.dumps(report.ranking, ensure_ascii=False, indent=2) if as_json else report.text)
    if not as_json:
        typer.echo(f"\n{report.html}")


@command("score")
def score_command(
    predictions: Annotated[Path, typer.Argument(help="CSV, TSV, JSONL or Parquet; any other file: one reply a line.")],
    references: Annotated[
        list[Path] | None, typer.Option(help="File of references. May be repeated: several references of each reply.")
    ] = None,
    messages: Annotated[Path | None, typer.Option(help="File of what the replies answer.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Without it: all that the files allow, chrF++ first.")
    ] = None,
    combine: Combine = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=COLUMN where names differ; may be repeated; fields: reply, reference, message, title, id."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="bnbench, or original: the original project's figures, and what they should have been.")
    ] = "bnbench",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core for long files.")] = None,
    seed: Seed = 42,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a file of replies. Files are joined by a column id where there is one, else line by line."""
    from bnbench.metrics.combined import parse_weights
    from bnbench.score import score

    scores = score(
        predictions,
        references or (),
        profile=profile,
        metrics=metric,
        combine=None if combine is None else parse_weights(combine),
        messages=messages,
        columns=_pairs(columns, "--columns"),
        workers=workers,
        seed=seed,
        quiet=quiet,
    )
    typer.echo(json.dumps(scores.summary(), ensure_ascii=False, indent=2) if as_json else str(scores))


@command("audit")
def audit_command(
    metrics: Annotated[
        list[str] | None, typer.Argument(help="Metrics to validate; keyword-empathy and semantic-empathy by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="CSV of labelled replies: message, reply, and 0, 1 or 2 for each mechanism "
            "(emotional_reaction, interpretation, exploration)."
        ),
    ] = None,
    half: Annotated[
        str | None, typer.Option(help="development or held-out; by default both, of the bundled set held-out.")
    ] = None,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Try to break a metric: spellings, changed replies, labels, sentinels that must not win. Exit code 4: it broke."""
    from bnbench.metrics.audit import audits, audits_text

    reports = audits(metrics or ["keyword-empathy", "semantic-empathy"], data, half, seed=seed)
    if as_json:
        typer.echo(json.dumps([r.as_dict() for r in reports], ensure_ascii=False, indent=2))
    else:
        typer.echo(audits_text(reports))
    if not all(r.passed for r in reports):
        raise typer.Exit(4)


@command("corpus")
def corpus_command(
    data: Annotated[str | None, typer.Argument(help="CSV, TSV, JSONL, Parquet or a hub id.")] = None,
    columns: Columns = None,
    split_sizes: Sizes = "4000/300/300",
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Show what cleaning drops from a corpus and why, its splits and its fingerprint."""
    from bnbench.data.corpus import SplitSizes, demo_corpus, load_corpus

    sizes = SplitSizes.parse(split_sizes)
    corpus = load_corpus(data, columns=_pairs(columns, "--columns"), sizes=sizes, seed=seed) if data else demo_corpus()
    typer.echo(json.dumps(corpus.summary(), ensure_ascii=False, indent=2) if as_json else corpus.table())


@command("inspect-prompt")
def inspect_prompt_command(
    base: Base = None,
    data: Data = None,
    columns: Columns = None,
    split: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    row: Annotated[int, typer.Option(min=0, help="Which row of the split.")] = 0,
    trust_remote_code: Trust = False,
) -> None:
    """Show a prompt as the model gets it: text, ids, token count, and which tokens are supervised in training."""
    from bnbench.models.prompts import inspect_prompt

    given = _pairs(columns, "--columns")
    typer.echo(inspect_prompt(base, data, given, split, row, trust_remote_code=trust_remote_code))
