"""One drafter, trained on what the frozen base answered.

python -m stages.train D    ->  models/drafters/D/, metrics/train/D.json, metrics/train/D.csv (curves)
"""

import csv
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch

from specdec.config import DrafterSettings, Environment, load_params
from specdec.data.packing import PackedRow
from specdec.drafters import new_drafter
from specdec.io import read_jsonl, replacing, sha256_file, sha256_json, write_json, write_text
from specdec.serving.states import vllm_states
from specdec.targets import Target
from specdec.tracking import DrafterRun, drafter_run
from specdec.tracking.warm_start import WarmStart, find_warm_start
from specdec.training import TrainingResult, train, warm_start
from specdec.training.code import deciding_code
from specdec.training.launch import launch_processes
from specdec.training.processes import base_device, is_main
from specdec.training.rows import count_answer_tokens, pack_rows
from stages import drafter_name, run, say

DATA = Path("data/synthetic")
WARM_STARTS = Path(".specdec/warm_start")  # drafters out of the registry
FEATURES = Path(".specdec/features")  # of `cached` and `vllm`; every drafter of the same base and data shares them
MACHINE = {"answer_tokens_per_second", "data_wait_share", "peak_memory_gb"}  # of the machine, not of the training


def main() -> None:
    params = load_params()
    name = drafter_name(params)
    launch_processes(["-m", "stages.train", name], Environment.read().processes)
    settings = params.drafters[name]
    training = settings.training
    start = find_warm_start(training.warm_start, WARM_STARTS) if training.warm_start else None
    target = Target.from_pretrained("models/base", dtype=training.dtype, device=base_device(training.shard_base))
    rows = {split: _packed(split, settings, target) for split in ("train", "validation")}
    torch.manual_seed(training.seed)  # of the weights that do not start from the base
    drafter = new_drafter(target, settings, count_answer_tokens(rows["train"], target.vocab_size))
    if start:
        warm_start(drafter, start.folder)
    provenance = _provenance(settings, target, start)
    work = _work_folder(name, provenance)
    source = vllm_states(target, Path("models/base"), drafter.aux_layers, training, work / "vllm.log", tell)
    curves = Curves(work / "curves.csv")
    with drafter_run(name, params, _read(work / "mlflow_run")) if is_main() else nullcontext() as tracked:
        if tracked:
            write_text(work / "mlflow_run", tracked.run_id)

        def on_log(metrics: dict[str, float], step: int) -> None:
            assert tracked  # the main process alone has figures
            tracked.log_metrics(metrics, step=step)
            curves.add(metrics, step)

        result = train(
            target, drafter, rows["train"], rows["validation"], training, work, FEATURES, on_log, tell, source
        )
        if tracked:
            drafter.save_pretrained(Path("models/drafters") / name, provenance | {"validation": result.metrics})
            _write_metrics(name, result, start, tracked, curves)
    tell(f"validation acceptance length {result.metrics['acceptance_length']:.3f} after {result.steps} steps")


def tell(line: str) -> None:
    """`say`, once for all processes."""
    if is_main():
        say(line)


def _packed(split: str, settings: DrafterSettings, target: Target) -> list[PackedRow]:
    rows = read_jsonl(DATA / f"{split}.jsonl")
    return pack_rows(rows, str(DATA / f"{split}.jsonl"), split, settings.training.max_length, target, tell)


def _provenance(settings: DrafterSettings, target: Target, start: WarmStart | None) -> dict[str, object]:
    """What decides the drafter's weights: two runs with the same are the same run."""
    return {
        "base": target.identity.as_dict(),
        "data": {split: sha256_file(DATA / f"{split}.jsonl") for split in ("train", "validation")},
        "settings": settings.model_dump(),
        **({"warm_start": start.record()} if start else {}),
    }


def _work_folder(name: str, provenance: dict[str, object]) -> Path:
    """Where this very run keeps its checkpoints; what other settings or data left behind is removed."""
    root = Path(".specdec/train") / name
    work = root / sha256_json([provenance, deciding_code()])[:16]
    if is_main():
        for other in root.glob("*"):
            if other != work:
                shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)
    return work


def _read(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def _write_metrics(
    name: str, result: TrainingResult, start: WarmStart | None, tracked: DrafterRun, curves: "Curves"
) -> None:
    final = {f"best/{key}": value for key, value in result.metrics.items()}
    tracked.log_metrics(final, step=result.steps)
    tracked.log_artifacts(Path("models/drafters") / name, "drafter")
    curves.publish(Path("metrics/train") / f"{name}.csv")
    content: dict[str, object] = {"mlflow_run": tracked.run_id, "steps": result.steps, **result.metrics}
    if start:
        content["warm_start"] = start.record()
    write_json(Path("metrics/train") / f"{name}.json", content)


class Curves:
    """step, metric, value: appended while training; after a resume, a step counts once (its last value).

    Without what the machine has part in: the same training gives the same curves, and DVC need not evaluate it again
    (but for the first loss behind an interruption: the mean of fewer steps).
    """

    def __init__(self, file: Path):
        self._file = file

    def add(self, metrics: dict[str, float], step: int) -> None:
        with self._file.open("a", newline="") as out:
            rows = ((step, name, value) for name, value in metrics.items() if name not in MACHINE)
            csv.writer(out).writerows(rows)

    def publish(self, out: Path) -> None:
        """One row a step, one column a metric, for `dvc plots`."""
        table: dict[int, dict[str, str]] = {}
        with self._file.open(newline="") as source:
            for line in csv.reader(source):
                if len(line) == 3:  # a kill can leave a torn last line
                    table.setdefault(int(line[0]), {})[line[1]] = line[2]
        names = sorted({name for values in table.values() for name in values})
        with replacing(out) as aside, aside.open("w", newline="") as sink:
            writer = csv.DictWriter(sink, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **table[step]} for step in sorted(table))


if __name__ == "__main__":
    run(main)
