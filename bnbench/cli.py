"""The command line. A command here parses, calls one function and prints; it holds no logic.

Results go to stdout (`--json` for machines), everything else to stderr. Exit codes: 0 done, 1 failure, 2 usage or
configuration, 3 partial (the message has the command that goes on), 4 a gate failed, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, Typer, echo
from typer.core import TyperGroup

from bnbench import __version__
from bnbench.errors import FULL, BnbenchError, RunError, UsageError, refused
from bnbench.progress import JsonLines, Lines, logs_json, quiet_beside_the_first, shown, told

if TYPE_CHECKING:
    from bnbench.evaluate import EvaluationRequest


def _hush(quiet: bool) -> bool:
    if quiet:
        logging.getLogger("bnbench").setLevel(logging.WARNING)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, which was not yet
    return quiet


MANY = 2**31 - 1  # more than any data, model or run has, and what every record can hold
Several = list[str] | None
# The options that several commands have, or that need more than a line: the same one has the same words everywhere.
Json = Annotated[bool, Option("--json", help="Print JSON instead of a text.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.", callback=_hush)]
Base = Annotated[str | None, Option(help="Base model: a folder, hub id or id@revision; name= may stand in front.")]
ADAPTERS = "Adapter: a folder, hub id or id@revision; may be repeated."
Adapters = Annotated[list[str] | None, Option("--adapter", help=ADAPTERS)]
BackendName = Annotated[str, Option("--backend", help="What runs the models: hf (transformers), vllm, a plug-in.")]
BATCH = "Prompts, or windows of a text, a batch; by default what memory holds."
BatchSize = Annotated[int | None, Option(min=1, max=MANY, help=BATCH)]
CONTEXT = "Tokens of a window; by default the model's, up to 4096."
STRIDE = "Tokens that a further window scores; by default half."
NF4 = "NF4 weights; by default where the graphics card is small."
FourBit = Annotated[bool | None, Option("--4bit/--no-4bit", help=NF4)]
ENDPOINT = "URL#MODEL of an OpenAI-compatible server, with an optional name= in front; repeated also for one model."
DATA = "CSV, TSV, JSON, JSONL, Parquet, .xlsx, or a hub id (owner/name, owner/name:configuration); chat data too."
Data = Annotated[str | None, Option(help=f"{DATA} By default the bundled conversations.")]
COLUMNS = "FIELD=COLUMN where the names of {} differ; may be repeated. Fields: {}."
CORPUS = "topic, title, question, reference, dialogue"
TRAINED = f"{CORPUS}; of pairs topic, title, question, chosen, rejected"
Columns = Annotated[list[str] | None, Option(help=COLUMNS.format("the data", CORPUS))]
SPLIT = (
    "Which rows: test, validation, train or all; to train on, train or all. By default evaluate takes all, but test "
    "where the file names its splits or a candidate was trained on it."
)
Split = Annotated[str, Option(help=SPLIT)]
Sizes = Annotated[str, Option(help="Most rows of train/validation/test.")]
Limit = Annotated[int | None, Option(min=1, max=MANY, help="Take only the first N rows of the shuffled split.")]
Trust = Annotated[bool, Option("--trust-remote-code", help="Run code that comes with a model. Off for a reason.")]
Device = Annotated[str | None, Option(help="cpu, cuda or (evaluate) cuda:1 …; by default the first graphics card.")]
Combine = Annotated[str | None, Option(help="METRIC=WEIGHT,METRIC=WEIGHT: their mean too, weighted as declared now.")]
METRIC = "NAME or NAME:ARGUMENT, see `bnbench metrics`; may be repeated. Without it: the usual ones that can be had."
Metrics = Annotated[list[str] | None, Option(help=METRIC)]
PRIMARY = "The metric that ranks, declared before the run; a report takes another too, such as human-overall."
Audit = Annotated[Path | None, Option(help="Further audits: what `bnbench audit METRIC --json` printed.")]
Seed = Annotated[int, Option(min=0, max=2**64 - 1, help="Seed of whatever the command draws at random.")]
HALF = "development, held-out or (preferences) both; of the bundled replies held-out to audit, else development."
Half = Annotated[str | None, Option(help=HALF)]
SYSTEM = "System text, {topic} replaced; none: no such turn. With NAME= in front for one candidate; may be repeated."
System = Annotated[list[str] | None, Option(help=SYSTEM)]
TEMPLATE = "auto (a candidate's own), llama-3.1, chat, plain or a Jinja file; NAME= in front and repeated as --system."
Template = Annotated[list[str] | None, Option(help=TEMPLATE)]
EXPORT = (
    "FORMAT or FORMAT=PATH, by default in its folder exports; may be repeated. There are csv, latex, sacrebleu, "
    "lm-eval, every-eval-ever, model-index, eval-results."
)
Exports = Annotated[list[str] | None, Option("--export", help=EXPORT)]
DatasetId = Annotated[str | None, Option(help="owner/name of the run's data on the hub, with @revision, #task.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only print the plan, or write the folder: train and push nothing.")]
GROUP = "NAME=A,B,C: candidates that differ in their training seed alone rank as one; may be repeated."
Overwrite = Annotated[bool, Option("--overwrite", help="Start anew in a folder that holds another run.")]
Groups = Annotated[list[str] | None, Option(help=GROUP)]
FAIL_IF = (
    "'METRIC < base', a number or another candidate instead; CANDIDATE: in front for one of them. Exit code 4 where it "
    "is so: of two candidates only where the items can tell; may be repeated."
)
FailIf = Annotated[list[str] | None, Option(help=FAIL_IF)]
Lang = Annotated[str, Option(help="Of the report: en or bn.")]
RunFolder = Annotated[Path, Argument(help="A run folder.")]
JUDGE = "URL#MODEL of a server: a language model that rates the replies."
JudgeAddress = Annotated[str | None, Option("--judge", help=JUDGE)]
JudgeLanguage = Annotated[str, Option(help="Of its rubric: bn or en.")]
RatingColumns = Annotated[list[str] | None, Option(help="A column of ratings; repeated: their mean counts.")]
LABELLED = "CSV: message, reply, and 0, 1 or 2 as emotional_reaction, interpretation and exploration."


MODELS, DRAWN, OF_RECIPES = "--base --adapter", "--temperature --top-p --top-k", "--recipe --base"
PROMPTED = f"--system --template --samples --greedy {DRAWN} --repetition-penalty --max-words --max-new-tokens"
DATA_OF = "--data --columns --split --split-sizes --limit"
OF_TRAINING = f"{DATA_OF} --out --set --sweep --start --stop-after --device --dry-run --trust-remote-code"
IDLE = (  # command, and options of it that do nothing without one of the next, beside one of the last (none: ever)
    ("evaluate", "--backend --4bit --device", MODELS, "--predictions --endpoint"),
    ("evaluate", "--max-tokens --trust-remote-code", f"{MODELS} --tokenizer", "--predictions --endpoint"),
    ("evaluate", f"{PROMPTED} --batch-size", f"{MODELS} --endpoint", "--predictions"),
    ("evaluate", DRAWN, "", "--greedy"),
    ("evaluate", "--max-words", "", "--max-new-tokens"),
    ("evaluate", "--judge-language", "--judge", ""),
    ("audit", "--judge-language", "--judge", ""),
    ("doctor", "--rows --trust-remote-code", "--base", ""),
    ("finetune", f"{OF_RECIPES} {OF_TRAINING} --copy", "", "--list"),
    ("finetune", OF_TRAINING, "", "--copy"),
    ("report", "--port", "--serve", ""),
)


class Commands(TyperGroup):
    """The commands, whose errors become one message on stderr and an exit code, here and nowhere else."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click does, but a second value of one option, of which click takes the last, an empty value, and an option
        that does nothing in its combination are UsageErrors.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if command:
            parser: Any = command.make_parser(command.context_class(command, info_name=name, parent=ctx))
            values, _, given = parser.parse_args(list(rest))
            for option in given:  # a script's variable that is not set does not ask for what stands by default
                if (of := values.get(option.name)) == "" or (isinstance(of, list | tuple) and "" in of):
                    raise UsageError(f"{option.opts[0]} is empty: give it a value, or leave it out")
            for option in (one for one in given if one.param_type_name == "option" and not one.multiple):
                if (not option.is_flag or option.secondary_opts) and given.count(option) > 1:  # -q -q says only -q
                    raise UsageError(f"{'/'.join([*option.opts, *option.secondary_opts])} is given twice: give it once")
            names = {option.opts[0] for option in given}
            for of, idle, without, beside in IDLE:
                here, others = names.intersection(idle.split()), names.intersection(beside.split())
                if of == name and here and not names.intersection(without.split()) and bool(others) == bool(beside):
                    told = (("beside", sorted(others)), ("without", without.split()))
                    why = "".join(f" {how} {' or '.join(words)}" for how, words in told if words)
                    raise UsageError(f"{', '.join(sorted(here))} would do nothing{why}: leave it out")
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BnbenchError as error:
            code, said = error.exit_code, str(error)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            code, said = 2, f"{error.filename}: {error.strerror}; choose another path"
        except BrokenPipeError:
            raise  # whoever read our output has had enough: click ends quietly
        except OSError as error:
            code, said = 1, refused(error)
            place = Path(error.filename or "")
            folder = place if place.is_dir() else place.parent
            if error.filename and error.errno in FULL and any(folder.glob("[!.]*")):
                said += "; what was written before is kept"
        except KeyboardInterrupt as stopped:
            resumes = ctx.invoked_subcommand in ("evaluate", "finetune")
            kept = "; ".join(["interrupted", *map(str, stopped.args)])
            code, said = 130, f"{kept}. Go on with: {_command_line()}" if resumes else kept
            if not logs_json():
                echo(err=True)
        _complain(said, code)
        raise Exit(code)


def _complain(why: str, code: int) -> None:
    """Says on stderr why the command ends with a code; it may quote a server, a file or a template of a stranger."""
    if logs_json():
        logging.getLogger("bnbench").error("%s", why, extra={"fields": {"exit": code}})
    else:
        echo(told(f"bnbench: {why}"), err=True)


app = Typer(
    name="bnbench", cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Evaluate Bengali chat models against their base, say which is better and by how much, and fine-tune them.",
)  # fmt: skip


RATE = "Let people rate a finished run, blind: forms, ratings, agreement, a plan."
human = Typer(cls=Commands, no_args_is_help=True, help=RATE)
app.add_typer(human, name="human")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
    log_json: Annotated[bool, Option("--log-json", help="Log as JSON, an object a line.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines() if log_json else Lines())
    logging.captureWarnings(log_json)
    logging.getLogger("bnbench").setLevel(logging.INFO)
    if version:
        echo(__version__)
        raise Exit


def main() -> None:
    """The entry point of the command `bnbench`."""
    if "LOCAL_RANK" in os.environ:
        quiet_beside_the_first()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without Bengali, or a file name that is not UTF-8
            stream.reconfigure(errors="backslashreplace")
    app()


def _command_line() -> str:
    home = f"{Path.home()}/"  # whose folder it is does not belong into a report; a shell knows it
    words = ('"$HOME"/'.join(part and shlex.quote(part) for part in word.split(home)) for word in sys.argv[1:])
    return " ".join(["bnbench", *(word or "''" for word in words)])


def _print(result: Any, as_json: bool, text: Callable[[Any], str] = str) -> None:
    """A result on stdout: as JSON its `summary()`, or itself where it has none; else what `text` makes of it."""
    if not as_json:
        return echo(shown(text(result)))
    plain = result.summary() if hasattr(result, "summary") else result
    # JSON spells out the older control characters only; these, too, are the terminal's.
    written = json.dumps(plain, ensure_ascii=False, indent=2, default=vars)
    return echo(re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", written))


def _pairs(items: list[str] | None, flag: str = "--columns", form: str = "FIELD=COLUMN") -> dict[str, str]:
    found = dict[str, str]()
    for item in items or ():
        left, sign, right = item.partition("=")
        if not (left and sign and right):
            raise UsageError(f"{flag} {item}: write it as {form}")
        if found.setdefault(left, right) != right:
            raise UsageError(f"{flag} {item}: {left}={found[left]} is given too; give it once")
    return found


@app.command("evaluate")
def evaluate_command(
    base: Base = None,
    adapter: Adapters = None,
    predictions: Annotated[list[str] | None, Option(help="File of recorded replies; may be repeated.")] = None,
    endpoint: Annotated[Several, Option(help=ENDPOINT)] = None,
    tokenizer: Annotated[str | None, Option(help="Of the endpoints: a folder or hub id; prompts are its ids.")] = None,
    data: Data = None,
    columns: Annotated[Several, Option(help=COLUMNS.format("the data", f"{CORPUS}, reply"))] = None,
    split: Annotated[str | None, Option(help=SPLIT)] = None,
    split_sizes: Sizes = "4000/300/300",
    limit: Limit = None,
    system: System = None,
    template: Template = None,
    out: Annotated[Path | None, Option(help="By default runs/NAME. The same command goes on.")] = None,
    backend: BackendName = "hf",
    metric: Metrics = None,
    primary: Annotated[str, Option(help=PRIMARY)] = "chrF++",
    combine: Combine = None,
    samples: Annotated[int, Option(min=1, max=1000, help="Replies drawn for each item.")] = 1,
    group: Groups = None,
    fail_if: FailIf = None,
    lang: Lang = "en",
    judge: JudgeAddress = None,
    judge_language: JudgeLanguage = "bn",
    judge_pairs: Annotated[bool, Option("--judge-pairs", help="It compares the candidates in pairs, too.")] = False,
    greedy: Annotated[bool, Option("--greedy", help="No sampling.")] = False,
    temperature: Annotated[float, Option(min=0.01)] = 0.7,
    top_p: Annotated[float, Option(min=0.01, max=1.0)] = 0.9,
    top_k: Annotated[int, Option(min=0, max=MANY, help="0: off.")] = 0,
    repetition_penalty: Annotated[float, Option(min=0.01)] = 1.1,
    max_words: Annotated[int, Option(min=1, max=MANY, help="Longest reply, in Bengali words.")] = 120,
    max_new_tokens: Annotated[int | None, Option(min=1, max=MANY, help="The same in tokens instead.")] = None,
    batch_size: BatchSize = None,
    max_tokens: Annotated[int, Option(min=1, max=MANY, help="Rows longer with their template are dropped.")] = 4096,
    four_bit: FourBit = None,
    device: Device = None,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a base and its adapters answer the same messages, and rank them. Without arguments: the bundled demo."""
    from bnbench.evaluate import evaluate, make_request
    from bnbench.models.decoding import Decoding

    decoding = Decoding(greedy, temperature, top_p, top_k, repetition_penalty, max_words, max_new_tokens, seed)
    request = make_request(
        base, adapter or (), predictions or (), endpoint or (), data=data, columns=_pairs(columns), split=split,
        split_sizes=split_sizes, limit=limit, systems=system or (), templates=template or (), combine=combine,
        judge=judge, judge_language=judge_language, judge_pairs=judge_pairs, metrics=metric or (), out=out,
        primary=primary, decoding=decoding, backend=backend, tokenizer=tokenizer, batch_size=batch_size,
        max_tokens=max_tokens, quantise=four_bit, device=device, trust_remote_code=trust_remote_code, quiet=quiet,
        overwrite=overwrite, command=_command_line(), samples=samples, groups=_groups(group) if group else {},
    )  # fmt: skip
    if fail_if or group or lang != "en":
        _check_asked(request, fail_if or [], lang)
    _report([evaluate(request)], None, as_json, fail_if=fail_if or (), lang=lang)


@app.command("perplexity")
def perplexity_command(
    texts: Annotated[list[str], Argument(help="Files that are one text each; tables and hub ids with a column text.")],
    base: Base = None,
    adapter: Adapters = None,
    columns: Annotated[list[str] | None, Option(help=COLUMNS.format("a table", "text"))] = None,
    lines: Annotated[bool, Option("--lines", help="Each line of a file without columns is a text.")] = False,
    context: Annotated[int | None, Option(min=2, max=MANY, help=CONTEXT)] = None,
    stride: Annotated[int | None, Option(min=1, max=MANY, help=STRIDE)] = None,
    no_bos: Annotated[bool, Option("--no-bos", help="No BOS in front; the first token is then not scored.")] = False,
    backend: BackendName = "hf",
    batch_size: BatchSize = None,
    four_bit: FourBit = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the perplexity of any text under a base and its adapters, each token scored once, by sliding windows."""
    from bnbench.models.backend import BackendOptions, get_backend
    from bnbench.models.candidates import parse_candidates
    from bnbench.windows import perplexity

    on_disk = get_backend(backend).needs_files
    candidates = parse_candidates(base, adapter or (), trust_remote_code=trust_remote_code, needs_files=on_disk)
    options = BackendOptions(backend, device, four_bit, trust_remote_code)
    _print(perplexity(
        candidates, texts, options, columns=_pairs(columns), by_line=lines, context=context, stride=stride,
        bos=not no_bos, batch_size=batch_size, quiet=quiet,
    ), as_json)  # fmt: skip


@app.command("finetune")
def finetune_command(
    more: Annotated[list[str] | None, Argument(metavar="[KEY=VALUE,VALUE]...", help="Further keys of --sweep.")] = None,
    recipe: Annotated[str | None, Option(help="A shipped recipe or a TOML file; without --base demo, else t4.")] = None,
    base: Base = None,
    data: Data = None,
    columns: Annotated[list[str] | None, Option(help=COLUMNS.format("the data", TRAINED))] = None,
    split: Split = "train",
    split_sizes: Sizes = "4000/300/300",
    limit: Limit = None,
    out: Annotated[Path | None, Option(help="By default adapters/RECIPE-BASE. The same command goes on.")] = None,
    set_: Annotated[list[str] | None, Option("--set", help="KEY=VALUE, a key of the recipe; may be repeated.")] = None,
    sweep: Annotated[list[str] | None, Option(help="KEY=VALUE,VALUE: train each, and rank them in one report.")] = None,
    start: Annotated[Path | None, Option(help="Adapter that a training on pairs goes on with: its reference.")] = None,
    stop_after: Annotated[str | None, Option(help="End the session after e.g. 11h30m, with all saved.")] = None,
    device: Device = None,
    dry_run: DryRun = False,
    list_: Annotated[bool, Option("--list", help="List the recipes.")] = False,
    copy: Annotated[Path | None, Option(help="Write the recipe to this file, to be changed.")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter with a recipe, or go on with one. What it writes, `evaluate --adapter` takes."""
    from bnbench import finetune as tuning

    if list_:
        return _print(tuning.recipe_list(), as_json, lambda _: tuning.recipe_table())
    if copy is not None:
        tuning.copy_recipe(recipe or ("t4" if base else "demo"), copy)
        return _print(str(copy), as_json)
    given: dict[str, Any] = {
        "columns": _pairs(columns), "split_sizes": split_sizes, "split": split, "limit": limit,
        "overrides": _pairs(set_, "--set", "KEY=VALUE"), "stop_after": stop_after, "device": device or "auto",
        "trust_remote_code": trust_remote_code, "command": _command_line(), "start": start,
    }  # fmt: skip
    if sweep and not dry_run:
        from bnbench.finetune import sweep as sweeps

        grid, folder = sweeps.parse_grid([*sweep, *(more or ())]), out or Path("adapters") / "sweep"
        run = sweeps.sweep(grid, folder, recipe=recipe, base=base, data=data, quiet=quiet, **given)
        return _report([run], None, as_json)
    if more or sweep:
        raise UsageError("KEY=VALUE,VALUE is for --sweep, which has no dry run; a key of the recipe is for --set")
    request = tuning.finetune_request(recipe, base, data, out, weights=not dry_run, **given)
    return _print(tuning.plan(request, weights=False) if dry_run else tuning.finetune(request), as_json)


@app.command("preferences")
def preferences_command(
    ratings: Annotated[Path | None, Argument(help="A table of rated replies; by default the bundled.")] = None,
    out: Annotated[Path, Option(help="CSV to write, for finetune --recipe dpo --data.")] = Path("pairs.csv"),
    margin: Annotated[float, Option(help="How much lower the rejected reply is rated, at least.")] = 0.5,
    rating: RatingColumns = None,
    columns: Annotated[Several, Option(help=COLUMNS.format("the ratings", "topic, title, message, reply"))] = None,
    half: Half = None,
    as_json: Json = False,
) -> None:
    """Make preference pairs of rated replies: the best reply to a message against each clearly worse one."""
    from bnbench.data.pairs import preferences

    made = preferences(ratings, out, margin=margin, columns=_pairs(columns), rating_columns=rating or (), half=half)
    _print(made, as_json, lambda made: f"{made}\n{out}")


@app.command("export")
def export_command(
    adapter: Annotated[str, Argument(help=ADAPTERS.partition(";")[0] + ".")],
    merged: Annotated[Path | None, Option(help="Folder of a whole model: safetensors, tokenizer, template.")] = None,
    gguf: Annotated[str | None, Option(help="Type of a GGUF file, such as Q4_K_M; alone: in exported/NAME.")] = None,
    ollama: Annotated[Path | None, Option(help="The same folder with a Modelfile, for `ollama create`.")] = None,
    base: Base = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write an adapter merged into its base, for programs that load no adapters: safetensors, GGUF, Ollama."""
    from bnbench.finetune import export

    if (merged is None and ollama is None and gguf is None) or (merged and ollama):
        raise UsageError("say which: one of --merged DIR and --ollama DIR, --gguf TYPE, or one of them and --gguf")
    folder = merged or ollama or Path("exported") / Path(adapter).name
    done = export(adapter, folder, base=base, gguf=gguf, ollama=ollama is not None, trust_remote_code=trust_remote_code)
    _print(done, as_json)


@app.command("publish")
def publish_command(
    adapter: Annotated[str, Argument(help=ADAPTERS.partition(";")[0] + ".")],
    run: Annotated[Path | None, Option(help="Run folder of its evaluation, for the model card.")] = None,
    repo: Annotated[str | None, Option(help="owner/name on the hub; made where it is not there.")] = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, Option(help="The folder; by default published/NAME.")] = None,
    private: Annotated[bool, Option("--private", help="Make the repository private.")] = False,
    create_pr: Annotated[bool, Option("--create-pr", help="As a pull request to a repository that is there.")] = False,
    base_id: Annotated[str | None, Option(help="Hub id of the base, where the adapter names a folder.")] = None,
    dataset_id: DatasetId = None,
    license_: Annotated[str | None, Option("--license", help="Licence, as the hub names it.")] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter's model card with recipe and evaluation, and push both with the token in HF_TOKEN."""
    from bnbench.finetune import publish

    _print(publish(
        adapter, run=run, repo=repo, out=out, base_id=base_id, dataset_id=dataset_id, license=license_,
        private=private, create_pr=create_pr, dry_run=dry_run,
    ), as_json)  # fmt: skip


@app.command("report")
def report_command(
    run: RunFolder,
    primary: Annotated[str | None, Option(help=PRIMARY)] = None,
    group: Groups = None,
    fail_if: FailIf = None,
    forest: Annotated[Path | None, Option(help="Write the ranking as a forest plot too: FILE.svg or FILE.png.")] = None,
    audit: Audit = None,
    serve: Annotated[bool, Option("--serve", help="Show it under http://127.0.0.1:PORT/ until Ctrl-C.")] = False,
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    watch: Annotated[bool, Option("--watch", help="Write it again when the run changed, until Ctrl-C.")] = False,
    lang: Lang = "en",
    export: Exports = None,
    dataset_id: DatasetId = None,
    as_json: Json = False,
) -> None:
    """Rank a finished run again and write its report, in other tools' formats too. Needs no model."""
    how: dict[str, Any] = {"audits": audit, "primary": primary, "groups": group and _groups(group), "lang": lang}
    _report([run], None, as_json, forest, export or (), dataset_id, fail_if=fail_if or (), **how)
    if serve or watch:
        from bnbench.records import read_run
        from bnbench.reports import write_report
        from bnbench.reports.serve import show

        page = run / "report.html"
        show(page, lambda: write_report([read_run(run)], run, **how), port=port if serve else None, watch=watch)


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], Argument(help="Run folders over the same items, or pages: their report.html.")],
    out: Annotated[Path, Option(help="Folder of the common report.")] = Path("runs/compare"),
    overwrite: Overwrite = False,
    group: Groups = None,
    fail_if: FailIf = None,
    audit: Audit = None,
    lang: Lang = "en",
    export: Exports = None,
    dataset_id: DatasetId = None,
    as_json: Json = False,
) -> None:
    """Rank the candidates of several runs together, in pairs over the same items. A page holds the data of its runs."""
    if len(runs) < 2:
        raise UsageError(f"{runs[0]}: name two runs or more; `bnbench report {runs[0]}` ranks one by itself")
    _report(
        runs, out, as_json, exports=export or (), dataset_id=dataset_id, audits=audit, lang=lang,
        groups=_groups(group) if group else None, fail_if=fail_if or (), overwrite=overwrite,
    )  # fmt: skip


def _report(
    folders: list[Path], out: Path | None, as_json: bool, forest: Path | None = None, exports: Sequence[str] = (),
    dataset_id: str | None = None, **how: Any,  # as `write_report` takes it
) -> None:  # fmt: skip
    from bnbench.records import read_run, unpack
    from bnbench.reports.gates import failures
    from bnbench.reports.render import Report, check_forest, write_forest, write_report

    written = list[str]()
    if exports or dataset_id:
        from bnbench.reports.exports import Dataset, check_exports, export

        place, dataset = (out or folders[0]) / "exports", Dataset.parse(dataset_id) if dataset_id else None
        check_exports(exports, dataset)
    if forest:
        check_forest(forest)

    def more(report: Report) -> None:
        if forest:
            write_forest(report.ranking, forest, report.say)
        written.extend(str(export(report.ranking, wanted, place, dataset)) for wanted in exports)

    with TemporaryDirectory() as room:
        places = list[tuple[Path, Path]]()
        for at, path in enumerate(folders):
            is_page = out and path.suffix == ".html"
            places += ((place, path) for place in (unpack(path, Path(room, str(at))) if is_page else [path]))
        try:
            runs = [read_run(place) for place, _ in places]
            report = write_report(runs, out or folders[0], also=more if forest or exports else None, **how)
        except RunError as error:  # nobody knows where the runs of a page lay
            for place, path in places:
                error.args = (str(error).replace(str(place), str(path)),)
            raise
    _print(report.ranking.as_dict(), as_json, lambda _: "\n".join((f"{report}\n", str(report.html), *written)))
    if report.gates and (failed := failures(report.gates, report.ranking)):
        for text in failed:
            _complain(f"{report.say('gate failed:')} {report.say(text)}", 4)
        raise Exit(4)


def _check_asked(request: EvaluationRequest, fail_if: list[str], lang: str) -> None:
    """What the report is asked for is refused before the work."""
    from bnbench.evaluate import choose_measures
    from bnbench.reports.gates import parse_gates
    from bnbench.reports.language import language
    from bnbench.reports.ranking import check_groups

    if lang != "en":
        language(lang)
    check_groups(request.groups, [candidate.name for candidate in request.candidates])
    # A group stands, as in the ranking, for its members, and is of its first one's kind.
    groups = {member: (name, member == of[0]) for name, of in request.groups.items() for member in of}
    named = ((*groups.get(c.name, (c.name, True)), c.kind) for c in request.candidates)
    kinds = {name: kind for name, is_first, kind in named if is_first}
    chosen = choose_measures(request.primary, request.metrics, request.combine, request.judge).metrics
    parse_gates(fail_if, {m.name: m.values for m in chosen}, kinds)


def _groups(items: list[str] | None) -> dict[str, tuple[str, ...]]:
    return {group: tuple(of.split(",")) for group, of in _pairs(items, "--group", "NAME=A,B,C").items()}


@human.command("sheet")
def human_sheet_command(
    run: RunFolder,
    raters: Annotated[int, Option(min=1, max=1000, help="A form for each.")] = 3,
    items: Annotated[int, Option(min=1, max=MANY, help="Messages on a form; all raters get the same.")] = 40,
    pairs: Annotated[bool, Option("--pairs", help="Ask also which of two replies is better.")] = False,
    out: Annotated[Path | None, Option(help="Folder of the forms; by default RUN/human.")] = None,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Write blind forms for people who rate the replies: a page that works offline, and the same as CSV and .xlsx."""
    from bnbench.reports.human import make_sheets

    _print(make_sheets(run, raters, items, pairs=pairs, out=out, seed=seed), as_json)


@human.command("import")
def human_import_command(
    run: RunFolder,
    files: Annotated[list[Path], Argument(help="Filled forms: .json of the page, .csv, .xlsx.")],
    replace: Annotated[bool, Option("--replace", help="A rater's later answers replace earlier ones.")] = False,
    as_json: Json = False,
) -> None:
    """Check filled forms and add them to the run's ratings; with any fault nothing is added."""
    from bnbench.reports.human import import_ratings

    _print(import_ratings(run, files, replace=replace), as_json)


@human.command("agreement")
def human_agreement_command(run: RunFolder, as_json: Json = False) -> None:
    """Show how far people agree, who is strict, what each candidate got, and which metrics agree with people."""
    from bnbench.reports.render import people_report

    found, text = people_report(run)
    _print(found, as_json, lambda _: text)


@human.command("plan")
def human_plan_command(
    run: RunFolder,
    difference: Annotated[float, Option(help="To be seen, in points of the 1-5 scale.")] = 0.3,
    power: Annotated[float, Option(help="Chance to see it.")] = 0.8,
    criterion: Annotated[str, Option(help="empathy, relevance, fluency or overall.")] = "overall",
    as_json: Json = False,
) -> None:
    """Say how many items and raters show a difference, from the ratings so far."""
    from bnbench.records import read_run
    from bnbench.reports.people import plan

    _print(plan(read_run(run), difference, power, criterion), as_json)


@app.command("score")
def score_command(
    predictions: Annotated[Path, Argument(help="A table or a log of other tools; any other file: one reply a line.")],
    references: Annotated[list[Path] | None, Option(help="File of references; repeated: several a reply.")] = None,
    messages: Annotated[Path | None, Option(help="File of what the replies answer.")] = None,
    metric: Metrics = None,
    combine: Combine = None,
    columns: Annotated[Several, Option(help=COLUMNS.format("files", "reply, reference, message, title, id"))] = None,
    profile: Annotated[str, Option(help="bnbench, or original: its figures and the right ones.")] = "bnbench",
    workers: Annotated[int | None, Option(min=1, help="Processes; by default one a core for long files.")] = None,
    seed: Seed = 42,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a file of replies. Files are joined by id or message where both have them once, else line by line."""
    from bnbench.metrics.combined import parse_weights
    from bnbench.score import score

    _print(score(
        predictions, references or (), profile=profile, metrics=metric, messages=messages, columns=_pairs(columns),
        combine=None if combine is None else parse_weights(combine), workers=workers, seed=seed, quiet=quiet,
    ), as_json)  # fmt: skip


@app.command("metrics")
def metrics_command(as_json: Json = False) -> None:
    """List the metrics, plug-ins too: which way is better, what each needs beside the replies, and its signature."""
    from bnbench.metrics.registry import get_metric, metric_names

    rows, lines = list[dict[str, Any]](), ["↑ higher is better, ↓ lower; what it needs; its signature for N replies"]
    for name in metric_names():
        try:
            metric = get_metric(name)
            signed, up, needs = metric.signature(0).replace("|n:0|", "|n:N|"), metric.higher_is_better, metric.needs
        except BnbenchError as error:  # such as a plug-in that needs an argument: it is there all the same
            signed, up, needs = str(error), None, frozenset()
        rows.append({"name": name, "higher_is_better": up, "needs": sorted(needs), "signature": signed})
        lines.append(f"{'?' if up is None else '↑' if up else '↓'} {name:<18}{', '.join(sorted(needs)):<12} {signed}")
    _print(rows, as_json, lambda _: "\n".join(lines))


@app.command("audit")
def audit_command(
    metrics: Annotated[list[str] | None, Argument(help="By default keyword-empathy and semantic-empathy.")] = None,
    data: Annotated[Path | None, Option(help=LABELLED)] = None,
    half: Half = None,
    ratings: Annotated[Path | None, Option(help="People's ratings: a table with message, reply, rating.")] = None,
    rating: RatingColumns = None,
    judge: JudgeAddress = None,
    judge_language: JudgeLanguage = "bn",
    out: Annotated[Path | None, Option(help="Folder of the judge's ratings, from which it goes on.")] = None,
    seed: Seed = 42,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try to break a metric: spellings, changed replies, labels, sentinels that must not win. Exit code 4: it broke.

    With --ratings or --judge instead of metrics: how people's ratings of the replies, or a judge's, agree with labels.
    """
    from bnbench.metrics.audit import audits, audits_text
    from bnbench.metrics.labelled import replies_to_audit

    if sum(map(bool, (metrics, ratings, judge))) > 1 or (rating and not ratings) or (out and not judge):
        raise UsageError("audit metrics, --ratings or --judge; --rating belongs to --ratings, and --out to --judge")
    if ratings or judge:  # which takes half a second longer to import
        from bnbench.judge import Judge, audit_judge, audit_ratings
    if ratings:
        reports = [audit_ratings(ratings, replies_to_audit(data, half), rating or (), seed=seed)]
    elif judge:
        rater, replies = Judge(judge, judge_language, quiet=quiet), replies_to_audit(data, half)
        reports = audit_judge(rater, replies, out, seed=seed, command=_command_line())
    else:
        reports = audits(metrics or ["keyword-empathy", "semantic-empathy"], data, half, seed=seed)
    _print([report.as_dict() for report in reports], as_json, lambda _: audits_text(reports))
    if not all(report.passed for report in reports):
        raise Exit(4)


@app.command("doctor")
def doctor_command(
    base: Base = None,
    rows: Annotated[int, Option(min=1, max=MANY, help="Messages that base and one adapter would answer.")] = 300,
    four_bit: FourBit = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show what is installed, what computes, and what an evaluation of --base would need: disk, memory, time."""
    from bnbench.doctor import examine

    _print(examine(base, rows, device, four_bit, trust_remote_code=trust_remote_code), as_json)


@app.command("corpus")
def corpus_command(
    data: Annotated[str | None, Argument(help=DATA)] = None,
    columns: Columns = None,
    split_sizes: Sizes = "4000/300/300",
    dropped: Annotated[Path | None, Option(help="CSV to write: the rows that fell or were repaired, and why.")] = None,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Show what cleaning drops from a corpus and why, its splits and its fingerprint."""
    from bnbench.data.corpus import Corpus, SplitSizes, load_corpus, write_dropped

    corpus = load_corpus(data, columns=_pairs(columns), sizes=SplitSizes.parse(split_sizes), seed=seed)
    if dropped is not None:
        write_dropped(corpus, dropped)
    _print(corpus, as_json, Corpus.table)


@app.command("inspect-prompt")
def inspect_prompt_command(
    base: Base = None,
    adapter: Adapters = None,
    data: Data = None,
    columns: Columns = None,
    split: Split = "test",
    row: Annotated[int, Option(min=0, max=MANY, help="Which row of the split.")] = 0,
    system: System = None,
    template: Template = None,
    every_turn: Annotated[bool, Option("--every-turn", help='As a recipe with supervise = "all" trains.')] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show a prompt as each model gets it: text, ids, token count, and which tokens are supervised in training."""
    from bnbench.models.backend import inspect_prompts

    asked, example = inspect_prompts(
        base, adapter or (), data, _pairs(columns), split, row, systems=system or (), templates=template or (),
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    told, texts = dict[str, Any](), list[str]()
    for name, prompter in asked.items():
        supervise = "all" if every_turn else "last"
        parts = prompter.training(example, supervise)  # every second one is an answer
        ids: dict[str, Any] = {"prompt_ids": parts[0], "supervised_ids": sum(parts[1::2], ())}
        ids |= {"parts": parts} if len(parts) > 2 else {}
        told[name] = {**prompter.describe(), "text": prompter.prompt(example).text, **ids}
        texts.append(f"{name}\n\n" * (len(asked) > 1) + prompter.show(example, supervise))
    _print(told if len(told) > 1 else next(iter(told.values())), as_json, lambda _: "\n\n".join(texts))
